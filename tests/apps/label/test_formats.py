"""Files of annotations."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipself_d2.apps.label.formats import write_coco, write_other

ROW = {
    "file_name": "a.png",
    "width": 40,
    "height": 20,
    "annotations": [{"category_id": 1, "bbox": [10, 5, 20, 10], "score": 0.5}],
}


def test_coco_numbers_pictures_classes_and_boxes_from_one(tmp_path: Path) -> None:
    write_coco(tmp_path / "labels.json", [ROW, ROW], ["dog", "cat"])
    content = json.loads((tmp_path / "labels.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    first, second = content["annotations"]
    assert (first["id"], first["image_id"], first["category_id"], first["area"]) == (1, 1, 2, 200)
    assert (second["id"], second["image_id"]) == (2, 2)


def test_yolo_has_centres_as_shares_of_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "a.png")
    write_coco(tmp_path / "labels.json", [ROW], ["dog", "cat"])
    write_other("yolo", tmp_path, tmp_path, ["dog", "cat"])
    numbers = (tmp_path / "yolo/labels/a.txt").read_text().split()
    assert [float(number) for number in numbers] == [1, 0.5, 0.5, 0.5, 0.5]
    write_other("voc", tmp_path, tmp_path, ["dog", "cat"])
    assert "<name>cat</name>" in (tmp_path / "voc/labels/a.xml").read_text()
