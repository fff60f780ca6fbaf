import json
import logging
from pathlib import Path

import pytest

from clipself_d2.apps.prepare.ov import prepare_ov_coco, prepare_ov_lvis
from clipself_d2.data.datasets.coco_ov import NOVEL_CLASSES

TRAIN = "coco/annotations/instances_train2017_seen_2_65_cat.json"
VAL = "coco/annotations/instances_val2017_all_2.json"
LVIS_TRAIN = "lvis/lvis_v1_train_seen_1203_cat.json"


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's logging keeps messages from pytest."""
    monkeypatch.setattr(logging.getLogger("clipself_d2"), "propagate", True)


def read(root: Path, file: str) -> dict:
    return json.loads((root / file).read_text())


def test_the_training_file_has_65_categories_and_no_novel_box(coco_root: Path) -> None:
    prepare_ov_coco(coco_root)
    document = read(coco_root, TRAIN)
    names = {row["id"]: row["name"] for row in document["categories"]}
    assert len(names) == 65
    assert set(NOVEL_CLASSES) <= set(names.values())
    assert [names[row["category_id"]] for row in document["annotations"]] == [
        "person",
        "person",
        "zebra",
    ]
    assert [row["id"] for row in document["images"]] == [1, 3, 6]


def test_rows_are_those_of_the_official_file(coco_root: Path) -> None:
    prepare_ov_coco(coco_root)
    official = read(coco_root, "coco/annotations/instances_val2017.json")
    document = read(coco_root, VAL)
    for section in ("images", "annotations", "categories"):
        by_id = {row["id"]: row for row in official[section]}
        assert all(by_id[row["id"]] == row for row in document[section])
    assert [row["image_id"] for row in document["annotations"]] == [11, 13]


def test_sections_may_come_in_any_order(coco_root: Path) -> None:
    prepare_ov_coco(coco_root)
    expected = read(coco_root, TRAIN)
    source = coco_root / "coco/annotations/instances_train2017.json"
    turned = dict(reversed(json.loads(source.read_text()).items()))
    source.write_text(json.dumps(turned, indent=2))
    prepare_ov_coco(coco_root, force=True)
    document = read(coco_root, TRAIN)
    for section in ("images", "annotations", "categories"):
        assert document[section] == expected[section]


def test_a_count_other_than_the_quoted_one_is_a_warning(
    coco_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="clipself_d2"):
        prepare_ov_coco(coco_root)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "has 3 images; 107761 are widely quoted" in warnings[0]
    assert "has 2 images; 4836 are widely quoted" in warnings[1]
    assert "3 images, 3 annotations (3 left out), 65 categories listed, 48" in caplog.text


def test_a_second_run_does_nothing_and_force_writes_again(coco_root: Path) -> None:
    assert len(prepare_ov_coco(coco_root)) == 2
    before = (coco_root / TRAIN).stat().st_mtime_ns
    assert prepare_ov_coco(coco_root) == []
    assert (coco_root / TRAIN).stat().st_mtime_ns == before
    assert len(prepare_ov_coco(coco_root, force=True)) == 2


def test_another_official_file_is_noticed(coco_root: Path) -> None:
    prepare_ov_coco(coco_root)
    source = coco_root / "coco/annotations/instances_train2017.json"
    source.write_text(source.read_text() + "\n")
    assert prepare_ov_coco(coco_root) == [coco_root / TRAIN]


def test_a_file_of_another_program_is_kept(
    coco_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (coco_root / TRAIN).write_text("{}")
    assert prepare_ov_coco(coco_root) == [coco_root / VAL]
    assert (coco_root / TRAIN).read_text() == "{}"
    assert "--force" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"name": "dog"', '"name": "hound"', "differ in .*18"),
        ('"categories"', '"kinds"', "0 categories, expected 80"),
        ('"image_id"', '"picture"', "image_id"),
        ('"annotations": [', '"annotations": [,', "Expecting value"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_written(
    old: str, new: str, complaint: str, coco_root: Path
) -> None:
    source = coco_root / "coco/annotations/instances_train2017.json"
    source.write_text(source.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"instances_train2017\.json is not .*{complaint}"):
        prepare_ov_coco(coco_root)
    assert not (coco_root / TRAIN).exists()


def test_a_missing_file_names_the_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"instances_train2017\.json.*annotations_trainval"):
        prepare_ov_coco(tmp_path)


def test_lvis_keeps_all_images_and_loses_rare_boxes(lvis_root: Path) -> None:
    prepare_ov_lvis(lvis_root)
    document = read(lvis_root, LVIS_TRAIN)
    assert len(document["categories"]) == 1203
    assert [row["category_id"] for row in document["annotations"]] == [1, 3, 1, 3]
    assert [row["id"] for row in document["images"]] == [1, 2]
    assert document["images"][0]["neg_category_ids"] == [5]
