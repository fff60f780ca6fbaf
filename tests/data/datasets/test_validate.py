"""Vocabularies and pictures; faults of the files are tests/parts/test_annotation_files.py's."""

import json
from pathlib import Path

import pytest

from clipself_d2.data.datasets.validate import check_coco_file, check_images_exist

GOOD = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}
    ],
    "categories": [{"id": 1, "name": "hot_dog"}],
}


def write(path: Path, **changes: object) -> Path:
    file = path / "notes.json"
    file.write_text(json.dumps({**GOOD, **changes}))
    return file


def test_a_good_file_passes_and_an_underscore_is_a_space(tmp_path: Path) -> None:
    assert check_coco_file(write(tmp_path), ["hot dog"])["images"] == GOOD["images"]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["cat"], "has the category 'hot dog', which is not in the vocabulary of 1 names"),
        (["cat", "hot dog"], "lacks the category 'cat'"),
    ],
)
def test_categories_that_are_not_the_vocabulary_are_named(tmp_path, names, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_coco_file(write(tmp_path), names)


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_annotation_of_nothing_is_named(tmp_path: Path, key: str) -> None:
    row = {**GOOD["annotations"][0], key: 77}
    with pytest.raises(ValueError, match="77"):
        check_coco_file(write(tmp_path, annotations=[row]))


def test_all_missing_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").mkdir()
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "none/c.jpg", "a.jpg/d.jpg")]
    with pytest.raises(FileNotFoundError, match=r"b\.jpg and 2 more are missing; look"):
        check_images_exist(paths, remedy="look")
    with pytest.raises(FileNotFoundError, match=r"b\.jpg is missing"):
        check_images_exist(paths[:2])
    check_images_exist(paths[:1])
