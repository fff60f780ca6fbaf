"""What the page draws follows the threshold, without the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from clipself_d2.apps.predict.page_results import (
    PictureResult,
    box_parts,
    expression_parts,
    heat_map,
    panoptic_parts,
    part_colours,
    read_output,
    semantic_parts,
    write_coco,
)

NAMES = ("dog", "dog house")
IMAGE = np.full((20, 30, 3), 100, np.uint8)


def detections() -> Instances:
    masks = torch.zeros(3, 20, 30, dtype=torch.bool)
    masks[0, 2:8, 1:9] = True
    boxes = torch.tensor([[1.0, 2.0, 9.0, 8.0], [3.0, 3.0, 20.0, 18.0], [0.0, 0.0, 5.0, 5.0]])
    return Instances(
        (20, 30),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([0.4, 0.9, 0.1]),
        pred_classes=torch.tensor([0, 1, 0]),
        pred_masks=masks,
    )


def test_boxes_and_masks_above_the_threshold_are_listed_best_first() -> None:
    result = read_output("a.jpg", IMAGE, {"instances": detections()})
    parts = box_parts(result, NAMES, 0.25, masks=False)
    assert parts == [((3, 3, 20, 18), "dog house 90%"), ((1, 2, 9, 8), "dog 40%")]
    masks = box_parts(result, NAMES, 0.25, masks=True)
    assert masks[1][0].sum() == 48
    assert len(box_parts(result, NAMES, 0.05, masks=False)) == 3
    colours = part_colours(parts, NAMES)
    assert len(set(colours.values())) == 2


def test_segments_are_counted_and_thresholded() -> None:
    ids = torch.zeros(20, 30, dtype=torch.int32)
    ids[:5], ids[5:8], ids[8:] = 1, 2, 3
    rows = [
        {"id": n, "category_id": 0, "isthing": True, "score": s} for n, s in ((1, 0.9), (2, 0.5))
    ]
    rows.append({"id": 3, "category_id": 1, "isthing": False})
    result = read_output("a.jpg", IMAGE, {"panoptic_seg": (ids, rows)})
    parts = panoptic_parts(result, NAMES, 0.1)
    assert [label for _, label in parts] == ["dog", "dog 2", "dog house"]
    assert [int(mask.sum()) for mask, _ in parts] == [150, 90, 360]
    assert [label for _, label in panoptic_parts(result, NAMES, 0.6)] == ["dog", "dog house"]


def test_pixels_below_the_threshold_and_of_negative_words_have_no_class() -> None:
    scores = torch.zeros(2, 20, 30)
    scores[0, :10], scores[1, 10:15] = 0.8, 0.3
    result = read_output("a.jpg", IMAGE, {"sem_seg": scores})
    assert [label for _, label in semantic_parts(result, NAMES, 0.0)] == [
        "dog 50%",
        "dog house 25%",
    ]
    assert [label for _, label in semantic_parts(result, NAMES, 0.5)] == ["dog 50%"]
    assert torch.equal(result.heat_Khw, scores)


def test_heat_maps_of_all_words_share_their_ends() -> None:
    maps = torch.zeros(2, 2, 3)
    maps[0, 0, 0], maps[1, 1, 2] = 1.0, 0.5
    result = PictureResult("a.jpg", IMAGE, heat_Khw=maps)
    first, low, high = heat_map(result, 0)
    second, *ends = heat_map(result, 1)
    assert (low, high) == tuple(ends) == (0.0, 1.0)
    assert first.shape[1] >= 640
    assert first[0, 0].sum() > second[-1, -1].sum() > second[0, 0].sum()


def test_an_expression_is_a_mask() -> None:
    probability = np.zeros((20, 30), np.float32)
    probability[:10, :15] = 0.5
    result = PictureResult("a.jpg", IMAGE, probability=probability, expression="the dog")
    ((mask, label),) = expression_parts(result, 0.4)
    assert (int(mask.sum()), label) == (150, "the dog")
    assert expression_parts(result, 0.6) == []


@pytest.mark.parametrize("kind", ["boxes", "semantic", "panoptic", "expression", "nothing"])
def test_the_download_says_what_the_page_shows(kind: str, tmp_path: Path) -> None:
    scores = torch.zeros(2, 20, 30)
    scores[1, 10:15, :10] = 0.5
    ids = torch.zeros(20, 30, dtype=torch.int32)
    ids[10:15, :10] = 7
    segment = {"id": 7, "category_id": 1, "score": 0.5}
    probability = np.zeros((20, 30), np.float32)
    probability[10:15, :10] = 0.5
    result = {
        "boxes": read_output("a.jpg", IMAGE, {"instances": detections()}),
        "semantic": read_output("a.jpg", IMAGE, {"sem_seg": scores}),
        "panoptic": read_output("a.jpg", IMAGE, {"panoptic_seg": (ids, [segment])}),
        "expression": PictureResult("a.jpg", IMAGE, probability=probability, expression="x"),
        "nothing": PictureResult("a.jpg", IMAGE, probability=0 * probability, expression="x"),
    }[kind]
    write_coco([result], NAMES, 0.45, tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert [row["file_name"] for row in content["images"]] == ["a.jpg"]
    rows = content["annotations"]
    if kind == "boxes":
        assert [row["score"] for row in rows] == [0.9]
    elif kind == "nothing":
        assert rows == []
    else:
        ((box, area, score),) = [(row["bbox"], row["area"], row["score"]) for row in rows]
        assert (box, area, score) == ([0, 10, 10, 5], 50, 0.5)
