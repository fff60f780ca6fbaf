"""Files of annotations."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image
from pycocotools import mask as mask_coder

from clipself_d2.apps.label.formats import check_form, write_coco, write_other

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


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, list[dict]]:
    """A photo that lies on its side in the file, and a picture without labels."""
    pytest.importorskip("supervision", exc_type=ImportError)
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    lying.save(tmp_path / "in" / "my photo.jpg", exif=exif)
    lying.save(tmp_path / "in" / "empty.png")
    boxes = [[0.0, 0.0, 20.0, 40.0], [10.25, 5.5, 8.0, 12.75], [3.0, 30.0, 4.0, 6.0]]
    rows = [
        {
            "file_name": "my photo.jpg",
            "width": 20,
            "height": 40,
            "annotations": [
                {"category_id": number % 2, "bbox": box, "score": 0.5}
                for number, box in enumerate(boxes)
            ],
        },
        {"file_name": "empty.png", "width": 40, "height": 20, "annotations": []},
    ]
    write_coco(tmp_path / "labels.json", rows, ["dog", "cat & mouse"])
    return tmp_path, rows


def test_yolo_files_hold_the_boxes_of_the_coco_file(labelled: tuple[Path, list[dict]]) -> None:
    folder, rows = labelled
    write_other("yolo", folder, folder / "in")
    write_other("yolo", folder, folder / "in")  # a run that goes on writes them anew
    lines = (folder / "yolo/labels/my photo.txt").read_text().splitlines()
    assert len(lines) == 3
    for line, label in zip(lines, rows[0]["annotations"], strict=True):
        number, x, y, width, height = (float(value) for value in line.split())
        assert number == label["category_id"]
        box = [20 * (x - width / 2), 40 * (y - height / 2), 20 * width, 40 * height]
        assert box == pytest.approx(label["bbox"], abs=0.001)
    assert (folder / "yolo/labels/empty.txt").read_text() == ""
    about = yaml.safe_load((folder / "yolo/data.yaml").read_text())
    assert about["names"] == ["dog", "cat & mouse"]
    assert (Path(about["path"]) / about["train"] / "my photo.jpg").is_file()


def test_voc_files_hold_them_in_whole_pixels(labelled: tuple[Path, list[dict]]) -> None:
    folder, rows = labelled
    write_other("voc", folder, folder / "in")
    content = ElementTree.parse(folder / "voc/labels/my photo.xml").getroot()
    assert [content.findtext(f"size/{side}") for side in ("width", "height")] == ["20", "40"]
    names = ["dog", "cat & mouse"]
    for found, label in zip(content.findall("object"), rows[0]["annotations"], strict=True):
        assert found.findtext("name") == names[label["category_id"]]
        sides = [int(found.findtext(f"bndbox/{s}")) for s in ("xmin", "ymin", "xmax", "ymax")]
        x, y, width, height = label["bbox"]
        # Pixels are counted from 1, the last one is inside, and what is behind the point is cut.
        assert sides == [int(x) + 1, int(y) + 1, int(x + width), int(y + height)]
    assert (folder / "voc/labels/empty.xml").is_file()


def test_masks_become_polygons(tmp_path: Path) -> None:
    pytest.importorskip("supervision", exc_type=ImportError)
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros((20, 40), np.uint8, order="F")
    mask[5:15, 10:30] = 1
    code = mask_coder.encode(mask)
    code["counts"] = code["counts"].decode()
    label = {**ROW["annotations"][0], "segmentation": code}
    write_coco(tmp_path / "labels.json", [{**ROW, "annotations": [label]}], ["dog", "cat"])
    write_other("yolo", tmp_path, tmp_path)
    number, *sides = (tmp_path / "yolo/labels/a.txt").read_text().split()
    assert number == "1"
    corners = np.array(sides, float).reshape(-1, 2) * (40, 20)
    assert {tuple(corner) for corner in corners.round()} == {(10, 5), (10, 14), (29, 14), (29, 5)}


def test_a_form_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_form("coco", Path("/"))
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match=r"pip install 'clipself_d2\[supervision\]'"):
        check_form("yolo", tmp_path)
    monkeypatch.setitem(sys.modules, "supervision", sys)
    with pytest.raises(ValueError, match="needs pictures in a folder"):
        check_form("voc", Path("/"))
