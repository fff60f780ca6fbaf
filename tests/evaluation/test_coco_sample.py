"""Scorers compared on real annotations: the objects of two COCO pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_util

from clipself_d2.evaluation import build_evaluator

SAMPLE = Path(__file__).parents[1] / "golden" / "coco_panoptic_sample"


def things() -> dict[str, Any]:
    """The sample's countable segments as instance annotations with masks, in COCO's format."""
    document = json.loads((SAMPLE / "panoptic_examples.json").read_text())
    categories = json.loads((SAMPLE / "panoptic_coco_categories.json").read_text())
    countable = {row["id"]: row for row in categories if row["isthing"]}
    annotations = []
    for row in document["annotations"]:
        colors = np.asarray(Image.open(SAMPLE / "panoptic_examples" / row["file_name"])).astype(int)
        ids = colors @ (1, 256, 65536)
        for segment in row["segments_info"]:
            if segment["category_id"] in countable:
                mask = np.asfortranarray(ids == segment["id"], dtype=np.uint8)
                rle = mask_util.encode(mask)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": row["image_id"],
                        "category_id": segment["category_id"],
                        "bbox": segment["bbox"],
                        "area": segment["area"],
                        "iscrowd": segment["iscrowd"],
                        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    }
                )
    images = [
        {key: image[key] for key in ("id", "height", "width", "file_name")}
        for image in document["images"]
    ]
    names = [{"id": i, "name": row["name"]} for i, row in countable.items()]
    return {"images": images, "annotations": annotations, "categories": names}


def lvis_of(coco: dict[str, Any]) -> dict[str, Any]:
    """The same objects under LVIS's rules; every third class is rare."""
    kept = [entry for entry in coco["annotations"] if not entry["iscrowd"]]
    categories = [
        {**row, "frequency": "rcf"[number % 3]} for number, row in enumerate(coco["categories"])
    ]
    images = []
    for number, image in enumerate(coco["images"]):
        present = {a["category_id"] for a in kept if a["image_id"] == image["id"]}
        absent = [row["id"] for row in categories if row["id"] not in present]
        lists = {"neg_category_ids": absent[::2], "not_exhaustive_category_ids": []}
        if number == 0:
            lists["not_exhaustive_category_ids"] = sorted(present)[:1]
        images.append({**image, **lists})
    return {"images": images, "annotations": kept, "categories": categories}


def found(truth: dict[str, Any], image: dict[str, Any], rng: np.random.Generator) -> Instances:
    """Detections near the objects of an image; masks are cut from those of the objects."""
    own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
    index = {row["id"]: number for number, row in enumerate(truth["categories"])}
    boxes, labels, masks = [], [], []
    for entry in own:
        mask = mask_util.decode(entry["segmentation"]).astype(bool)
        for _ in range(3):
            x, y, w, h = entry["bbox"]
            dx, dy = rng.normal(0, 0.1, 2) * (w, h)
            boxes.append([x + dx, y + dy, x + dx + w, y + dy + h * rng.uniform(0.7, 1.2)])
            masks.append(np.roll(mask, (int(dy), int(dx)), axis=(0, 1)))
            wrong = rng.random() < 0.2
            labels.append(int(rng.integers(len(index))) if wrong else index[entry["category_id"]])
    return Instances(
        (image["height"], image["width"]),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.from_numpy(np.round(rng.random(len(boxes)), 2)),
        pred_classes=torch.tensor(labels),
        pred_masks=torch.from_numpy(np.stack(masks)),
    )


@pytest.mark.parametrize("kind", ["coco_ov", "lvis_ov"])
def test_scorers_agree_on_real_objects(
    register: Callable[..., str], rng: np.random.Generator, kind: str
) -> None:
    truth = things() if kind == "coco_ov" else lvis_of(things())
    names = [row["name"] for row in truth["categories"]]
    contiguous = {row["id"]: number for number, row in enumerate(truth["categories"])}
    present = sorted({contiguous[entry["category_id"]] for entry in truth["annotations"]})
    assert len(truth["annotations"]) > 10
    assert len(present) > 3
    dataset = register(
        truth,
        evaluator_type=kind,
        thing_classes=names,
        novel_classes=[names[number] for number in present[::2]],
        thing_dataset_id_to_contiguous_id=contiguous,
    )
    outputs = [{"instances": found(truth, image, rng)} for image in truth["images"]]
    inputs = [{"image_id": image["id"]} for image in truth["images"]]
    scores = []
    for backend in ("hotcoco", "reference"):
        judge = build_evaluator(dataset, None, backend=backend, fixed_ap=True)
        judge.reset()
        judge.process(inputs, outputs)
        scores.append(judge.evaluate())
    fast, reference = scores
    assert list(fast) == list(reference) == ["bbox", "segm"]
    for task, values in fast.items():
        assert 1 < values["AP"] < 99
        assert values == pytest.approx(reference[task], abs=1e-6, nan_ok=True)
