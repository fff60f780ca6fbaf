import json
from pathlib import Path

import pytest

from clipself_d2.data.datasets.validate import (
    check_coco_file,
    check_images_exist,
    read_annotation_file,
)

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


def test_a_missing_file_names_itself_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json.*dig it out"):
        read_annotation_file(tmp_path / "gone.json", ("images",), remedy="dig it out")


def test_text_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.json.*JSON"):
        read_annotation_file(tmp_path / "notes.json", ("images",))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_missing_section_is_named(tmp_path: Path, key: str) -> None:
    file = write(tmp_path)
    content = {name: value for name, value in GOOD.items() if name != key}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"notes\.json.*{key}"):
        check_coco_file(file)


def test_no_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"notes\.json.*image"):
        check_coco_file(write(tmp_path, images=[], annotations=[]))


def test_a_category_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hot dog"):
        check_coco_file(write(tmp_path), ["cat"])


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_annotation_of_nothing_is_named(tmp_path: Path, key: str) -> None:
    row = {**GOOD["annotations"][0], key: 77}
    with pytest.raises(ValueError, match="77"):
        check_coco_file(write(tmp_path, annotations=[row]))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.jpg"):
        check_images_exist([tmp_path / "b.jpg"])


def test_all_missing_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").mkdir()
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "none/c.jpg", "a.jpg/d.jpg")]
    with pytest.raises(FileNotFoundError, match=r"b\.jpg and 2 more are missing; look"):
        check_images_exist(paths, remedy="look")
    check_images_exist(paths[:1])


def test_an_image_may_have_a_url_alone_but_not_neither(tmp_path: Path) -> None:
    image = {"id": 1, "width": 4, "height": 4}
    check_coco_file(write(tmp_path, images=[{**image, "coco_url": "http://x/val2017/1.jpg"}]))
    with pytest.raises(ValueError, match="'file_name' in entry 0"):
        check_coco_file(write(tmp_path, images=[image]))
