"""Maps of things and background drawn from polygons."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from PIL import Image

from clipself_d2.data.datasets.emoji_semantic import (
    draw_map,
    draw_segments,
    register_emoji_semantic,
    write_maps,
)

NAMES = [f"again_{task}_{s}" for task in ("semantic", "panoptic_fpn") for s in ("train", "val")]


@pytest.fixture
def names(emoji_root: Path, catalogs: None) -> list[str]:
    return register_emoji_semantic(emoji_root, prefix="again")


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


def test_segments_are_numbered_from_the_background_on():
    square = {"segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]}
    other = {"segmentation": [[1, 1, 2, 1, 2, 2, 1, 2]]}
    assert draw_segments([square, other], (3, 4)).tolist() == [
        [2, 2, 1, 1],
        [2, 3, 3, 1],
        [1, 3, 3, 1],
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_detectron2s_panoptic_evaluator_finds_its_metadata_and_truth(names, tmp_path, split):
    name = f"again_panoptic_fpn_{split}"
    evaluator = COCOPanopticEvaluator(name, str(tmp_path))
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    truth = json.loads(Path(metadata.panoptic_json).read_text())
    categories = {row["id"]: row for row in truth["categories"]}
    rows = {row["image_id"]: row for row in truth["annotations"]}
    assert len(categories) == len(truth["categories"])
    for record in records:
        row = rows[record["image_id"]]
        red, green, blue = np.moveaxis(
            np.asarray(Image.open(Path(metadata.panoptic_root) / row["file_name"]), np.int64), 2, 0
        )
        drawn = red + 256 * green + 65536 * blue
        numbers, areas = np.unique(drawn, return_counts=True)
        assert [s["id"] for s in row["segments_info"]] == numbers.tolist()
        assert [s["area"] for s in row["segments_info"]] == areas.tolist()
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        for segment in row["segments_info"]:
            is_thing = categories[segment["category_id"]]["isthing"]
            assert (labels[drawn == segment["id"]] == (0 if is_thing else 1)).all()
    # What it makes of the model's classes: thing 0, and label 1 of the map.
    found = [
        evaluator._convert_category_id({"category_id": number, "isthing": is_thing})["category_id"]
        for number, is_thing in ((0, True), (1, False))
    ]
    assert [categories[number]["name"] for number in found] == [
        metadata.thing_classes[0],
        "background",
    ]


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
