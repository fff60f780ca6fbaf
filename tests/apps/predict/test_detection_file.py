"""A file that COCO's tools open."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from clipself_d2.apps.predict.detection_file import DetectionFile


def make(**fields: object) -> Instances:
    found = Instances((20, 30))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.0, 7.0], [0.0, 0.0, 30.0, 20.0]]))
    found.scores = torch.tensor([0.75, 0.25])
    found.pred_classes = torch.tensor([1, 0])
    for name, value in fields.items():
        found.set(name, value)
    return found


def write(tmp_path: Path, file: DetectionFile) -> COCO:
    file.save(tmp_path / "detections.json")
    return COCO(str(tmp_path / "detections.json"))


def test_coco_tools_read_images_classes_and_boxes(tmp_path: Path) -> None:
    file = DetectionFile(["cat", "dog"])
    file.add("a.jpg", make()[:0])
    file.add("film.mp4", make(), frame=7)
    coco = write(tmp_path, file)
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == ["a.jpg", "film.mp4"]
    second = coco.loadImgs(2)[0]
    assert (second["width"], second["height"], second["frame"]) == (30, 20, 7)
    assert coco.getAnnIds(imgIds=1) == []
    dog = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(["dog"])))
    assert [(row["bbox"], row["score"], row["image_id"]) for row in dog] == [
        ([1.0, 2.0, 10.0, 5.0], 0.75, 2)
    ]


def test_the_annotations_are_results_too(tmp_path: Path) -> None:
    file = DetectionFile(["cat", "dog"])
    file.add("a.jpg", make())
    coco = write(tmp_path, file)
    rows = json.loads((tmp_path / "detections.json").read_text())["annotations"]
    again = coco.loadRes(rows)
    assert [row["score"] for row in again.loadAnns(again.getAnnIds())] == [0.75, 0.25]


def test_masks_come_back_bit_for_bit(tmp_path: Path) -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 2:7, 1:11] = True
    masks[0, 3, 4] = False
    file = DetectionFile(["cat", "dog"])
    file.add("a.jpg", make(pred_masks=masks))
    coco = write(tmp_path, file)
    row = coco.loadAnns(1)[0]
    np.testing.assert_array_equal(coco.annToMask(row), masks[0].numpy())
    assert row["area"] == 49


def test_without_detections_the_classes_and_pictures_are_there(tmp_path: Path) -> None:
    file = DetectionFile(["cat"])
    file.add("a.jpg", make()[:0])
    file.save(tmp_path / "detections.json")
    content = json.loads((tmp_path / "detections.json").read_text())
    assert content["annotations"] == []
    assert content["categories"] == [{"id": 1, "name": "cat"}]
    assert len(content["images"]) == 1


@pytest.mark.parametrize("count", [0, 2])
def test_numbers_of_annotations_are_unique(tmp_path: Path, count: int) -> None:
    file = DetectionFile(["cat", "dog"])
    for name in ("a.jpg", "b.jpg"):
        file.add(name, make()[:count])
    assert [row["id"] for row in file.annotations] == list(range(1, 2 * count + 1))
