import json
from pathlib import Path

import numpy as np
import pytest
from lvis import LVIS
from PIL import Image
from pycocotools.coco import COCO

from clipself_d2.apps.emoji.scenes import SceneRenderer
from clipself_d2.data.datasets.emoji_world import load_world


@pytest.fixture
def notes(emoji_root: Path) -> Path:
    return emoji_root / "emoji" / "annotations"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_the_instances_are_those_of_the_renderer(notes: Path) -> None:
    document = read(notes / "instances_val.json")
    scene = SceneRenderer().render(np.random.default_rng([0, 1, 0]))
    first = document["images"][0]["id"]
    rows = [row for row in document["annotations"] if row["image_id"] == first]
    expected = [
        (item.thing + 1, [x0, y0, x1 - x0, y1 - y0])
        for item in scene.objects
        for x0, y0, x1, y1 in [item.box]
    ]
    assert [(row["category_id"], row["bbox"]) for row in rows] == expected


def test_pycocotools_reads_the_masks(notes: Path) -> None:
    coco = COCO(str(notes / "instances_val.json"))
    for row in coco.anns.values():
        mask = coco.annToMask(row)
        x, y, width, height = row["bbox"]
        rows, columns = np.nonzero(mask)
        assert abs(columns.min() - x) <= 1
        assert abs(rows.min() - y) <= 1
        assert abs(columns.max() + 1 - x - width) <= 1
        assert abs(rows.max() + 1 - y - height) <= 1


def test_the_open_vocabulary_file_has_base_boxes_of_80_listed_classes(notes: Path) -> None:
    base, everything = (
        read(notes / "instances_train_base.json"),
        read(notes / "instances_train_all.json"),
    )
    novel = {thing.id for thing in load_world().things if thing.frequency == "r"}
    assert len(base["categories"]) == 80
    assert not any(row["category_id"] in novel for row in base["annotations"])
    assert any(row["category_id"] in novel for row in everything["annotations"])
    kept = {row["id"] for row in everything["annotations"] if row["category_id"] not in novel}
    assert {row["id"] for row in base["annotations"]} == kept
    used = {row["image_id"] for row in base["annotations"]}
    assert {image["id"] for image in base["images"]} == used


def test_lvis_reads_its_file(notes: Path) -> None:
    lvis = LVIS(str(notes / "lvis_val.json"))
    names = {thing.id: thing for thing in load_world().things}
    assert len(lvis.cats) == 80
    assert all(row["frequency"] == names[number].frequency for number, row in lvis.cats.items())
    for image in lvis.imgs.values():
        present = {row["category_id"] for row in lvis.img_ann_map[image["id"]]}
        assert present.isdisjoint(image["neg_category_ids"])
        assert image["not_exhaustive_category_ids"] == []


def test_lvis_counts_are_those_of_the_whole_training_set(notes: Path) -> None:
    document = read(notes / "lvis_val.json")
    rows = read(notes / "instances_train_all.json")["annotations"]
    for category in document["categories"]:
        mine = [row for row in rows if row["category_id"] == category["id"]]
        assert category["instance_count"] == len(mine)
        assert category["image_count"] == len({row["image_id"] for row in mine})


def test_the_panoptic_maps_hold_exactly_the_listed_segments(notes: Path) -> None:
    document = read(notes / "panoptic_val.json")
    for row in document["annotations"]:
        rgb = np.asarray(Image.open(notes.parent / "panoptic_val" / row["file_name"]), np.int64)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        areas = {int(number): int((ids == number).sum()) for number in np.unique(ids)}
        assert areas == {segment["id"]: segment["area"] for segment in row["segments_info"]}
    isthing = {category["isthing"] for category in document["categories"]}
    assert isthing == {0, 1}
    assert len(document["categories"]) == 88
