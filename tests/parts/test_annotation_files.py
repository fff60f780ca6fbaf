"""Faults of annotation files: refused with file, entry and value, or mended with one warning."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipself_d2.parts.annotation_files import (
    Content,
    check_listed,
    read_annotation_file,
    read_instances,
    read_json,
)
from clipself_d2.parts.annotation_rules import ALWAYS, COCO_SCORING, LVIS_SCORING, SCORING, TRAINING
from clipself_d2.parts.annotation_truth import read_truth

REMEDY = "dig out another"
WIDTH, HEIGHT = 40, 30
SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]
LINE = [2, 2, 12, 12, 22, 22]
DROP = object()


def sound() -> Content:
    """Two images, two objects of each, of COCO and LVIS in one."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
            | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
            for number in (3, 4)
        ],
        "annotations": [
            {"id": number, "image_id": 3 + number % 2, "category_id": 5 + number % 2}
            | {"bbox": [2, 2, 10, 10], "segmentation": [SQUARE], "area": 100.0, "iscrowd": 0}
            for number in (1, 2, 3, 4)
        ],
        "categories": [
            {"id": 5, "name": "cat", "frequency": "f"},
            {"id": 6, "name": "dog", "frequency": "r"},
        ],
    }


def changed(section: str, changes: dict[str, Any], entry: int = 1) -> Content:
    content = sound()
    content[section][entry] |= changes
    for key in [key for key, value in changes.items() if value is DROP]:
        del content[section][entry][key]
    return content


def write(folder: Path, content: object) -> Path:
    file = folder / "notes.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="ascii")
    return file


def read(file: Path, purpose: str) -> Content:
    """Read as training or as a scorer does."""
    if purpose == TRAINING:
        return read_instances(file, remedy=REMEDY)
    keys = {"images": ("neg_category_ids",)} if purpose == LVIS_SCORING else {}
    return read_truth(file, purpose=purpose, required=keys, remedy=REMEDY).content


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Function that returns the warnings since it was asked last."""
    caplog.set_level(logging.WARNING)

    def take() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return texts

    return take


NOT_FOUR = "a bbox that is not four finite numbers in entry 1 of 'annotations': .*"
STRANGE_MASK = "a segmentation that is neither polygons nor run lengths in entry 1 of 'annotations'"
STRANGE_RUNS = "run lengths of a mask that do not fit its image in entry 1 of 'annotations'"
NAN, INF = float("nan"), float("inf")

# Section, fields of its entry 1 (DROP: no such key), what is said.
REFUSED = [
    ("images", {"id": DROP}, "lacks the key 'id' in entry 1 of 'images'"),
    ("images", {"id": None}, "an id that .* in entry 1 of 'images': id None"),
    ("images", {"id": 4.0}, "an id that .* in entry 1 of 'images': id 4.0"),
    ("images", {"id": True}, "an id that .* in entry 1 of 'images': id True"),
    ("images", {"id": [4]}, "an id that .* in entry 1 of 'images': id .4."),
    ("images", {"id": 3}, "has 2 images with id 3, expected one"),
    ("images", {"width": DROP}, "lacks the key 'width' in entry 1 of 'images'"),
    ("images", {"width": None}, "no size in entry 1 of 'images': .*width None"),
    ("images", {"height": 0}, "no size in entry 1 of 'images': .*height 0"),
    ("images", {"height": "30"}, "no size in entry 1 of 'images': .*height '30'"),
    ("images", {"height": NAN}, "no size in entry 1 of 'images': .*height nan"),
    ("images", {"height": 10**400}, "no size in entry 1 of 'images': .*height 1000"),
    ("images", {"neg_category_ids": "5"}, "a list of categories that .* entry 1 of 'images': id 4"),
    ("images", {"neg_category_ids": [[5]]}, "a list of categories that .* entry 1 of 'images'"),
    ("annotations", {"id": DROP}, "lacks the key 'id' in entry 1 of 'annotations'"),
    ("annotations", {"id": None}, "an id that .* in entry 1 of 'annotations': id None"),
    ("annotations", {"id": [2]}, "an id that .* in entry 1 of 'annotations': id .2."),
    ("annotations", {"id": 4}, "has 2 annotations with id 4, expected one"),
    ("annotations", {"image_id": DROP}, "lacks the key 'image_id' in entry 1 of 'annotations'"),
    ("annotations", {"image_id": 77}, "image_id 77, which 'images' does not list"),
    ("annotations", {"image_id": "3"}, "image_id '3', which 'images' does not list"),
    ("annotations", {"image_id": 3.0}, "image_id 3.0, which 'images' does not list"),
    ("annotations", {"image_id": [3]}, r"image_id \[3\], which 'images' does not list"),
    ("annotations", {"category_id": DROP}, "lacks the key 'category_id' in entry 1"),
    ("annotations", {"category_id": 77}, "category_id 77, which 'categories' does not list"),
    ("annotations", {"category_id": None}, "category_id None, which 'categories' does not list"),
    ("annotations", {"bbox": DROP}, "lacks the key 'bbox' in entry 1 of 'annotations'"),
    ("annotations", {"bbox": None}, NOT_FOUR + "bbox None"),
    ("annotations", {"bbox": "1,2,3,4"}, NOT_FOUR + "bbox '1,2,3,4'"),
    ("annotations", {"bbox": [1, 2, 3]}, NOT_FOUR + r"bbox \[1, 2, 3\]"),
    ("annotations", {"bbox": [1, 2, 3, None]}, NOT_FOUR + "None"),
    ("annotations", {"bbox": [1, 2, 3, True]}, NOT_FOUR + "True"),
    ("annotations", {"bbox": {"x": 1}}, NOT_FOUR + "'x'"),
    ("annotations", {"bbox": [NAN] * 4}, NOT_FOUR + "nan"),
    ("annotations", {"bbox": [0, 0, INF, 5]}, NOT_FOUR + "inf"),
    ("annotations", {"bbox": [0, 0, 10**400, 5]}, NOT_FOUR),
    ("annotations", {"iscrowd": 2}, "an iscrowd that .* in entry 1 of 'annotations': .*iscrowd 2"),
    ("annotations", {"iscrowd": "0"}, "an iscrowd that .* in entry 1 of .*iscrowd '0'"),
    ("annotations", {"segmentation": "xx"}, STRANGE_MASK + ".*'xx'"),
    ("annotations", {"segmentation": 7}, STRANGE_MASK + ".*7"),
    ("annotations", {"segmentation": "x" * 100_000}, STRANGE_MASK),
    ("annotations", {"segmentation": SQUARE}, STRANGE_MASK),
    ("annotations", {"segmentation": [["2"] * 6]}, STRANGE_MASK),
    ("annotations", {"segmentation": [SQUARE, None]}, STRANGE_MASK),
    ("annotations", {"segmentation": [[*SQUARE, NAN, 3]]}, STRANGE_MASK),
    ("annotations", {"segmentation": [[*SQUARE, 10**400, 3]]}, STRANGE_MASK),
    ("annotations", {"segmentation": {"counts": [9], "size": [HEIGHT, WIDTH]}}, STRANGE_RUNS),
    ("annotations", {"segmentation": {"counts": "0", "size": [HEIGHT, WIDTH]}}, STRANGE_RUNS),
    ("annotations", {"segmentation": {"counts": [1200], "size": [WIDTH, HEIGHT]}}, STRANGE_RUNS),
    ("annotations", {"segmentation": {"counts": [1200]}}, STRANGE_RUNS),
    ("categories", {"id": DROP}, "lacks the key 'id' in entry 1 of 'categories'"),
    ("categories", {"id": "6"}, "category_id 6, which 'categories' does not list"),
    ("categories", {"id": 5}, "category_id 6, which 'categories' does not list"),
    ("categories", {"name": DROP}, "lacks the key 'name' in entry 1 of 'categories'"),
    ("categories", {"name": " "}, "a name that is no words in entry 1 of 'categories': .*name ' '"),
    ("categories", {"name": None}, "a name that .* in entry 1 of 'categories': .*name None"),
    ("categories", {"name": "cat"}, "has 2 categories with name 'cat', expected one"),
]


@pytest.mark.parametrize(("section", "changes", "words"), REFUSED)
@pytest.mark.parametrize("purpose", ALWAYS)
def test_faults_that_cannot_be_mended_are_refused_by_place(
    tmp_path: Path, section: str, changes: dict[str, Any], words: str, purpose: str
) -> None:
    file = write(tmp_path, changed(section, changes))
    with pytest.raises(ValueError, match=words) as caught:
        read(file, purpose)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith(f"; {REMEDY}")
    assert len(str(caught.value)) < 500 + len(str(file))


# Fields of annotation 1, what is warned of, and the fields that are read (None: left out).
Change = dict[str, Any]
NEGATIVE = "1 rows have a box of negative width or height; left out"
ZERO = "1 rows have a box of zero width or height; "
POLYGON = "1 rows have a polygon without an area; these polygons are left out"
SCORED = ZERO + "counted as the reference scorers count it: as never found"
NO_AREA = "1 rows have no area; taken from the mask, or from the box where there is none"
HALF_MASK = {"segmentation": [SQUARE, LINE], "area": 9.0}
MENDED: list[tuple[Change, tuple[str, ...], str | None, Change | None]] = [
    ({"bbox": [12, 2, -10, 10]}, ALWAYS, NEGATIVE, None),
    ({"bbox": [2, 12, 10, -1e-9]}, ALWAYS, NEGATIVE, None),
    ({"bbox": [2, 2, 0, 10]}, (TRAINING,), ZERO + "left out of training", None),
    ({"bbox": [2, 2, 10, 0.0]}, (TRAINING,), ZERO + "left out of training", None),
    ({"bbox": [2, 2, 0, 10]}, SCORING, SCORED, {"bbox": [2, 2, 0, 10]}),
    ({"segmentation": [LINE]}, (TRAINING,), POLYGON + ", and the object where it has no", None),
    ({"segmentation": [[2, 2, 9, 9]]}, (TRAINING,), POLYGON, None),
    (HALF_MASK, ALWAYS, POLYGON, {"segmentation": [SQUARE], "area": 9.0}),
    ({"area": DROP}, SCORING, NO_AREA, {"area": 100.0}),
    ({"area": None}, SCORING, NO_AREA, {"area": 100.0}),
    ({"area": "7"}, SCORING, NO_AREA, {"area": 100.0}),
    ({"area": NAN}, SCORING, NO_AREA, {"area": 100.0}),
    ({"area": -1}, SCORING, NO_AREA, {"area": 100.0}),
    ({"area": DROP, "segmentation": []}, SCORING, NO_AREA, {"area": 100.0, "segmentation": []}),
    ({"iscrowd": DROP}, (COCO_SCORING,), "1 rows have no iscrowd; taken as 0", {"iscrowd": 0}),
    ({"iscrowd": None}, (COCO_SCORING,), "1 rows have no iscrowd; taken as 0", {"iscrowd": 0}),
    ({"iscrowd": None}, (LVIS_SCORING,), "1 rows have an iscrowd of null; tak", {"iscrowd": 0}),
    # No faults, and not a word.
    ({"iscrowd": DROP}, (LVIS_SCORING,), None, {"iscrowd": DROP}),
    ({"area": DROP, "iscrowd": DROP}, (TRAINING,), None, {"area": DROP, "iscrowd": DROP}),
    ({"segmentation": DROP}, ALWAYS, None, {"segmentation": DROP}),
    ({"segmentation": None}, ALWAYS, None, {"segmentation": None}),
    ({"bbox": [-3, -2.5, 90, 90]}, ALWAYS, None, {"bbox": [-3, -2.5, 90, 90]}),
    ({"id": "b"}, (TRAINING,), None, {"id": "b"}),
    ({"id": 0}, (TRAINING,), None, {"id": 0}),
    ({"score": 1, "keypoints": [0]}, ALWAYS, None, {"score": 1, "keypoints": [0]}),
]


@pytest.mark.parametrize(
    ("changes", "purpose", "words", "result"),
    [(row, purpose, said, result) for row, use, said, result in MENDED for purpose in use],
)
def test_what_can_be_mended_is_mended_with_one_warning(
    tmp_path: Path,
    warnings: Callable[[], list[str]],
    changes: Change,
    purpose: str,
    words: str | None,
    result: Change | None,
) -> None:
    file = write(tmp_path, changed("annotations", changes))
    content = read(file, purpose)
    expected = sound() if result is None else changed("annotations", result)
    if result is None:
        del expected["annotations"][1]
    assert content == expected
    said = warnings()
    assert len(said) == (words is not None)
    for text in said:
        assert f"{file}: {words}" in text


def test_equal_faults_are_counted_in_one_warning(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    content = sound()
    for row in content["annotations"][:3]:
        row["bbox"] = [2, 2, 10, 0]
        row["segmentation"] = [LINE]
    content["annotations"][3]["bbox"] = [2, 2, -1, 5]
    assert read(write(tmp_path, content), COCO_SCORING)["annotations"][0]["bbox"] == [2, 2, 10, 0]
    said = warnings()
    assert [text.split(": ", 1)[1].split(";")[0] for text in said] == [
        "3 rows have a box of zero width or height",
        "3 rows have a polygon without an area",
        "1 rows have a box of negative width or height",
    ]


@pytest.mark.parametrize(
    ("changes", "has_fault"),
    [
        ({"file_name": DROP}, True),
        ({"file_name": DROP, "coco_url": "http://x/val2017/4.jpg"}, False),
        ({"file_name": DROP, "coco_url": ""}, True),
        ({"file_name": None}, True),
        ({"file_name": ""}, True),
        ({"file_name": 4}, True),
        ({"file_name": None, "coco_url": "http://x/val2017/4.jpg"}, True),
    ],
)
def test_only_training_needs_the_pictures(
    tmp_path: Path, changes: dict[str, Any], has_fault: bool
) -> None:
    file = write(tmp_path, changed("images", changes))
    for purpose in SCORING:
        assert len(read(file, purpose)["images"]) == 2
    if has_fault:
        with pytest.raises(ValueError, match=r"file_name.* in entry 1 of 'images'"):
            read(file, TRAINING)
    else:
        assert len(read(file, TRAINING)["images"]) == 2


def test_absolute_paths_of_pictures_are_said_and_taken(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    file = write(tmp_path, changed("images", {"file_name": "/data/4.jpg"}))
    assert read(file, TRAINING)["images"][1]["file_name"] == "/data/4.jpg"
    assert [text.split(": ", 1)[1][:43] for text in warnings()] == [
        "1 images have an absolute file_name; the fo"
    ]


def test_image_ids_are_texts_or_numbers_not_both(tmp_path: Path) -> None:
    content = sound()
    content["images"].append({**content["images"][0], "id": "3"})
    with pytest.raises(ValueError, match=r"notes\.json has image ids of which some are texts"):
        read(write(tmp_path, content), TRAINING)


def test_boxes_that_are_all_fractions_are_refused(tmp_path: Path) -> None:
    content = sound()
    for row in content["annotations"]:
        row["bbox"] = [0, 0.25, 1, 0.5]
    with pytest.raises(ValueError, match=r"notes\.json has no bbox beyond 0 to 1.*multiply them"):
        read(write(tmp_path, content), TRAINING)
    for box in ([0, 0, 1, 1], [0, 0.25, 1.5, 0.5]):
        content["annotations"][2]["bbox"] = box
        if box[2] == 1:
            for row in content["annotations"]:
                row["bbox"] = box
        assert len(read(write(tmp_path, content), TRAINING)["annotations"]) == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs", "is not JSON"),
        ("", "is not JSON"),
        ('{"images": [', "is not JSON"),
        ("[" * 200_000, "nested too deeply"),
        ([], "holds a list, expected an object with the keys images, annotations, categories"),
        ("null", "holds a NoneType, expected an object"),
        ({**sound(), "annotations": None}, "lacks a list of objects under 'annotations'"),
        ({**sound(), "annotations": [[1]]}, "lacks a list of objects under 'annotations'"),
        ({**sound(), "annotations": {"1": {}}}, "lacks a list of objects under 'annotations'"),
        ({"images": [], "annotations": []}, "lacks a list of objects under 'categories'"),
        ({**sound(), "images": [], "annotations": []}, "lists no image"),
        ({**sound(), "annotations": [], "categories": []}, "lists no category"),
    ],
)
@pytest.mark.parametrize("purpose", ALWAYS)
def test_files_of_another_kind_are_refused_by_name(
    tmp_path: Path, content: object, words: str, purpose: str
) -> None:
    file = write(tmp_path, content)
    with pytest.raises(ValueError, match=words) as caught:
        read(file, purpose)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith(f"; {REMEDY}")


@pytest.mark.parametrize("purpose", ALWAYS)
def test_a_missing_file_is_named(tmp_path: Path, purpose: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"nowhere\.json is missing; {REMEDY}"):
        read(tmp_path / "nowhere.json", purpose)


def test_text_that_is_no_unicode_is_not_json(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(ValueError, match=r"notes\.json is not JSON"):
        read_json(file)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "notes.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(sound()).encode())
    assert read(file, TRAINING) == sound()


@pytest.mark.parametrize("purpose", ALWAYS)
def test_a_sound_file_is_returned_as_it_is(
    tmp_path: Path, warnings: Callable[[], list[str]], purpose: str
) -> None:
    assert read(write(tmp_path, sound()), purpose) == sound()
    assert warnings() == []


def test_a_quiet_reading_says_nothing_and_mends(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    file = write(tmp_path, changed("annotations", {"bbox": [2, 2, 0, 1]}))
    assert len(read_instances(file, quiet=True)["annotations"]) == 3
    assert warnings() == []


def test_images_alone_are_checked_where_no_more_is_read(tmp_path: Path) -> None:
    rows = [{"image_id": 1}]
    assert read_annotation_file(write(tmp_path, {"annotations": rows}), ("annotations",)) == {
        "annotations": rows
    }
    images = {"images": sound()["images"]}
    assert read_annotation_file(write(tmp_path, images), ("images",)) == images


def test_whole_numbers_and_texts_that_look_alike_are_told_apart() -> None:
    listed = [{"id": 1}, {"id": "2"}]
    check_listed("f", [{"image_id": 1}, {"image_id": "2"}], "image_id", listed, REMEDY)
    for stranger in ("1", 2, True, 1.0):
        with pytest.raises(ValueError, match="which 'images' does not list"):
            check_listed("f", [{"image_id": stranger}], "image_id", listed, REMEDY)


def test_a_key_that_a_scorer_wants_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path, changed("images", {"neg_category_ids": DROP}))
    with pytest.raises(ValueError, match="lacks the key 'neg_category_ids' in entry 1 of 'images'"):
        read(file, LVIS_SCORING)
    assert len(read(file, COCO_SCORING)["images"]) == 2
