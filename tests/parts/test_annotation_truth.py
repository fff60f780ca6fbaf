"""What scorers read: numbers where a file has texts, and the file itself where it will do."""

import json
from pathlib import Path

import pytest

from clipself_d2.parts.annotation_rules import COCO_SCORING
from clipself_d2.parts.annotation_truth import Truth, read_truth


@pytest.fixture
def truth(tmp_path: Path):
    """Function from ids of an image and an annotation to what is scored."""

    def read(image_id: object, annotation_id: object) -> Truth:
        row = {"image_id": image_id, "category_id": 1, "bbox": [1, 1, 4, 5], "iscrowd": 0}
        content = {
            "images": [{"id": image_id, "file_name": "a.jpg", "width": 9, "height": 9}],
            "annotations": [{"id": annotation_id, "area": 20.0, **row}],
            "categories": [{"id": 1, "name": "cat"}],
        }
        file = tmp_path / "a.json"
        file.write_text(json.dumps(content))
        return read_truth(file, purpose=COCO_SCORING, required={}, remedy="mend it")

    return read


def test_a_sound_file_is_scored_as_it_is(truth) -> None:
    got = truth(7, 3)
    assert (got.image_numbers, got.numbered) == (None, None)


def test_texts_are_numbered_and_the_files_ids_kept(truth) -> None:
    got = truth("im7", "x")
    assert got.image_numbers == {"im7": 1}
    assert got.numbered["annotations"][0]["image_id"] == 1
    assert got.numbered["annotations"][0]["id"] == 1
    assert got.content["images"][0]["id"] == "im7"


def test_an_annotation_id_of_zero_is_numbered_anew(truth) -> None:
    got = truth(7, 0)
    assert got.image_numbers is None
    assert got.numbered["annotations"][0]["id"] == 1
