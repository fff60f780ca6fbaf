"""Maps of things and background drawn from polygons."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clipself_d2.data.datasets.emoji_semantic import (
    draw_map,
    register_emoji_semantic,
    write_maps,
)

NAMES = [f"again_{task}_{s}" for task in ("semantic", "panoptic_fpn") for s in ("train", "val")]


@pytest.fixture
def names(emoji_root: Path):
    registered = register_emoji_semantic(emoji_root, prefix="again")
    yield registered
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_things_are_drawn_on_the_background():
    drawn = draw_map([[2, 1, 5, 1, 5, 3, 2, 3]], (6, 8))
    expected = np.ones((6, 8), np.uint8)
    expected[1:4, 2:6] = 0
    np.testing.assert_array_equal(drawn, expected)
    assert draw_map([], (2, 3)).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_records_name_a_map_of_the_size_of_the_picture(names):
    assert names == NAMES
    records = DatasetCatalog.get("again_semantic_val")
    assert len(records) == 4
    for record in records:
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        assert labels.shape == (record["height"], record["width"])
        assert set(np.unique(labels)) == {0, 1}
        assert record["annotations"]


def test_novel_things_are_no_background_in_training(names, emoji_root):
    file = emoji_root / "emoji" / "annotations" / "instances_train_all.json"
    everything = json.loads(file.read_text(encoding="utf-8"))["annotations"]
    missed = 0
    for record in DatasetCatalog.get("again_semantic_train"):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        for annotation in everything:
            if annotation["image_id"] == record["image_id"]:
                alone = draw_map(annotation["segmentation"], labels.shape)
                assert not labels[alone == 0].any()
        missed += sum(a["image_id"] == record["image_id"] for a in everything)
        missed -= len(record["annotations"])
    assert missed > 0, "no scene has a novel thing"


def test_panoptic_sets_are_scored_for_boxes_too(names):
    metadata = MetadataCatalog.get("again_panoptic_fpn_train")
    assert metadata.stuff_classes == ["things", "background"]
    assert metadata.evaluator_type == "coco_panoptic_seg"


def test_maps_are_drawn_once(emoji_root, tmp_path):
    file = emoji_root / "emoji" / "annotations" / "instances_val.json"
    assert write_maps(file, tmp_path / "maps") == 4
    assert write_maps(file, tmp_path / "maps") == 0
    next((tmp_path / "maps").iterdir()).unlink()
    assert write_maps(file, tmp_path / "maps") == 1
    assert not list((tmp_path / "maps").glob("*.partial"))


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_emoji"):
        write_maps(tmp_path / "instances_val.json", tmp_path / "maps")
