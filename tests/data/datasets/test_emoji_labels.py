"""Label maps of the emoji scenes are the panoptic truth by class."""

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.evaluation.segments import panoptic_labels
from clipself_d2.parts.label_maps import read_label_map
from clipself_d2.parts.text_embeddings import dataset_vocabulary


def test_maps_are_the_panoptic_truth(emoji_data) -> None:
    records = DatasetCatalog.get("emoji_ov_sem_seg_val")
    truth = {r["file_name"]: r for r in DatasetCatalog.get("emoji_ov_panoptic_val")}
    assert len(records) == len(truth) == 4
    for record in records:
        labels = read_label_map(record["sem_seg_file_name"])
        assert np.array_equal(labels, panoptic_labels(truth[record["file_name"]]))


def test_novel_things_do_not_count_in_training(emoji_data) -> None:
    metadata = MetadataCatalog.get("emoji_ov_sem_seg_train")
    novel = [metadata.thing_classes.index(name) for name in metadata.novel_classes]
    ignored = 0
    for record in DatasetCatalog.get("emoji_ov_sem_seg_train"):
        labels = read_label_map(record["sem_seg_file_name"])
        assert not np.isin(labels, novel).any()
        ignored += int((labels == metadata.ignore_label).sum())
    assert ignored > 0, "no scene has a novel thing"


def test_things_come_first_and_stuff_is_told_apart(emoji_data) -> None:
    vocabulary = dataset_vocabulary("emoji_ov_sem_seg_val")
    metadata = MetadataCatalog.get("emoji_ov_sem_seg_val")
    assert vocabulary.names == (*metadata.thing_classes, *metadata.stuff_classes)
    assert sum(vocabulary.thing_mask) == len(metadata.thing_classes)
    assert set(vocabulary.novel_names) == set(metadata.novel_classes)
