"""What scorers read: numbers where a file has texts, and the file itself where it will do."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from clipself_d2.parts.annotation_rules import COCO_SCORING, SCORING
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


@pytest.mark.parametrize("purpose", SCORING)
@pytest.mark.parametrize("ids", [(3, 4), ("3", "4"), (0, 1), (-1, 4), ("b", "a")])
@pytest.mark.parametrize("first", [1, 0, "x"])
def test_scorers_read_numbers_under_which_all_is_as_before(
    tmp_path: Path, caplog, purpose: str, ids: tuple[Any, Any], first: int | str
) -> None:
    images = [
        {"id": image_id, "file_name": "a.jpg", "width": 40, "height": 30}
        | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        for image_id in ids
    ]
    rows = [
        {"id": f"x{n}" if first == "x" else int(first) + n, "image_id": ids[n % 2]}
        | {"category_id": 5 + n % 2, "bbox": [2, 2, 10, 10], "area": 100.0, "iscrowd": 0}
        | {"segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
        for n in range(4)
    ]
    categories = [{"id": 5, "name": "cat", "frequency": "f"}]
    categories += [{"id": 6, "name": "dog", "frequency": "r"}]
    content = {"images": images, "annotations": rows, "categories": categories}
    before = copy.deepcopy(content)
    file = tmp_path / "notes.json"
    file.write_text(json.dumps(content))
    got = read_truth(file, purpose=purpose, required={}, remedy="mend it")
    is_numbered = not all(type(i) is int and i >= 0 for i in ids)
    assert bool(got.image_numbers) == is_numbered
    assert (got.numbered is None) == (first == 1 and not is_numbered)
    assert len(caplog.records) == is_numbered + (first != 1)
    numbers = got.image_numbers or {i: i for i in ids}
    scored = got.numbered or got.content
    assert [row["id"] for row in scored["annotations"]] == [1, 2, 3, 4]
    assert [row["id"] for row in got.content["images"]] == list(ids)
    for section, key in (("images", "id"), ("annotations", "image_id")):
        for row, old in zip(scored[section], before[section], strict=True):
            assert row[key] == numbers[old[key]]
            assert {**row, key: 0, "id": 0} == {**old, key: 0, "id": 0}
