import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets import register_emoji
from clipself_d2.data.datasets.emoji_world import load_world
from clipself_d2.evaluation.build import panoptic_labels
from clipself_d2.parts.label_maps import read_label_map
from clipself_d2.parts.text_embeddings import dataset_vocabulary

OV = ("emoji_ov_train", "emoji_ov_val")
LVIS = ("emoji_lvis_train", "emoji_lvis_val")


@pytest.mark.parametrize("name", [*OV, *LVIS])
def test_records_have_contiguous_classes_and_existing_files(name: str, emoji_data: Path) -> None:
    records = DatasetCatalog.get(name)
    assert records
    classes = {row["category_id"] for record in records for row in record["annotations"]}
    assert classes <= set(range(80))
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_a_class_number_is_its_name(emoji_data: Path) -> None:
    names = MetadataCatalog.get("emoji_ov_val").thing_classes
    document = json.loads((emoji_data / "emoji/annotations/instances_val.json").read_text())
    by_id = {row["id"]: row["name"] for row in document["categories"]}
    first = document["annotations"][0]
    record = DatasetCatalog.get("emoji_ov_val")[0]
    assert names[record["annotations"][0]["category_id"]] == by_id[first["category_id"]]


@pytest.mark.parametrize("name", [OV[0], LVIS[0]])
def test_training_sets_have_no_novel_box(name: str, emoji_data: Path) -> None:
    novel = set(MetadataCatalog.get(name).novel_classes)
    assert len(novel) == 20
    names = MetadataCatalog.get(name).thing_classes
    used = {names[row["category_id"]] for r in DatasetCatalog.get(name) for row in r["annotations"]}
    assert used.isdisjoint(novel)


def test_both_protocols_show_the_same_boxes(emoji_data: Path) -> None:
    def boxes(name: str) -> set:
        return {
            (record["image_id"], row["category_id"], *row["bbox"])
            for record in DatasetCatalog.get(name)
            for row in record["annotations"]
        }

    assert boxes("emoji_ov_val") == boxes("emoji_lvis_val")


def test_panoptic_classes_count_things_then_stuff(emoji_data: Path) -> None:
    things = len(load_world().things)
    for record in DatasetCatalog.get("emoji_panoptic_val"):
        for segment in record["segments_info"]:
            assert segment["isthing"] == (segment["category_id"] < things)
            assert 0 <= segment["category_id"] < things + 8


def test_the_image_list_has_every_training_image(emoji_data: Path) -> None:
    assert len(DatasetCatalog.get("emoji_train_images")) == 16


def test_evaluator_types(emoji_data: Path) -> None:
    types = [MetadataCatalog.get(n).evaluator_type for n in (*OV, *LVIS, "emoji_panoptic_val")]
    assert types == ["coco_ov", "coco_ov", "lvis_ov", "lvis_ov", "region_classification"]


def test_a_missing_root_names_the_command(tmp_path: Path, catalogs: None) -> None:
    register_emoji(tmp_path / "nowhere", prefix="lost")
    with pytest.raises(FileNotFoundError, match=r"prepare_emoji\.py"):
        DatasetCatalog.get("lost_ov_train")


def test_label_maps_are_the_panoptic_truth(emoji_data: Path) -> None:
    records = DatasetCatalog.get("emoji_ov_sem_seg_val")
    truth = {r["file_name"]: r for r in DatasetCatalog.get("emoji_ov_panoptic_val")}
    assert len(records) == len(truth) == 4
    for record in records:
        labels = read_label_map(record["sem_seg_file_name"])
        assert np.array_equal(labels, panoptic_labels(truth[record["file_name"]]))


def test_novel_things_do_not_count_in_the_label_maps_of_training(emoji_data: Path) -> None:
    metadata = MetadataCatalog.get("emoji_ov_sem_seg_train")
    novel = [metadata.thing_classes.index(name) for name in metadata.novel_classes]
    ignored = 0
    for record in DatasetCatalog.get("emoji_ov_sem_seg_train"):
        labels = read_label_map(record["sem_seg_file_name"])
        assert not np.isin(labels, novel).any()
        ignored += int((labels == metadata.ignore_label).sum())
    assert ignored > 0, "no scene has a novel thing"


def test_things_come_first_and_stuff_is_told_apart(emoji_data: Path) -> None:
    vocabulary = dataset_vocabulary("emoji_ov_sem_seg_val")
    metadata = MetadataCatalog.get("emoji_ov_sem_seg_val")
    assert vocabulary.names == (*metadata.thing_classes, *metadata.stuff_classes)
    assert sum(vocabulary.thing_mask) == len(metadata.thing_classes)
    assert set(vocabulary.novel_names) == set(metadata.novel_classes)
