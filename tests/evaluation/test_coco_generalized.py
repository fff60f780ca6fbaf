"""AP50 of base, novel and all classes against the published evaluator of RegionCLIP."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances

from clipself_d2.data.datasets.coco_ov import NOVEL_CLASSES
from clipself_d2.evaluation import build_evaluator

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation" / "coco_generalized.json"


def detections(rows: list[dict], contiguous: dict[int, int], size: tuple[int, int]) -> Instances:
    boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    found = Instances(size)
    found.pred_boxes = Boxes(boxes)
    found.scores = torch.tensor([row["score"] for row in rows])
    found.pred_classes = torch.tensor([contiguous[row["category_id"]] for row in rows]).long()
    return found


@pytest.mark.parametrize("backend", ["hotcoco", "reference"])
def test_splits_meet_the_published_evaluator(register: Callable[..., str], backend: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    contiguous = {row["id"]: number for number, row in enumerate(golden["gt"]["categories"])}
    name = register(
        golden["gt"],
        evaluator_type="coco_ov",
        thing_classes=golden["class_names"],
        novel_classes=list(NOVEL_CLASSES),
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    evaluator = build_evaluator(name, None, backend=backend)
    evaluator.reset()
    for image in golden["gt"]["images"]:
        rows = [row for row in golden["dets"] if row["image_id"] == image["id"]]
        found = detections(rows, contiguous, (image["height"], image["width"]))
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
    scores = evaluator.evaluate()["bbox"]
    for ours, theirs in (("novel", "target"), ("base", "base"), ("all", "all")):
        expected = 100 * golden["split"][f"AP50_split_{theirs}"]
        assert scores[f"AP50-{ours}"] == pytest.approx(expected, abs=1e-4), sorted(scores)
    assert scores["AP"] == pytest.approx(100 * golden["stats12"][0], abs=1e-4)
