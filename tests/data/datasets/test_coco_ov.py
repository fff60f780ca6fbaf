import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.apps.prepare.ov import prepare_ov_coco
from clipself_d2.data.datasets.coco_ov import (
    COCO_THINGS,
    EXCLUDED_CLASSES,
    NOVEL_CLASSES,
    OV_COCO_CLASSES,
    coco_synonyms,
    register_coco_ov,
)
from clipself_d2.data.datasets.coco_panoptic import COCO_STUFF
from clipself_d2.vocabulary import Vocabulary

# Of the published detectors' class weights: zeros at these places of 65.
NOVEL_INDICES = [4, 5, 11, 12, 15, 16, 21, 23, 27, 29, 32, 34, 45, 47, 54, 58, 63]


def test_the_split_is_48_base_17_novel_and_15_neither() -> None:
    names = set(COCO_THINGS.values())
    assert len(names) == 80
    assert set(NOVEL_CLASSES) | set(EXCLUDED_CLASSES) < names
    assert set(NOVEL_CLASSES).isdisjoint(EXCLUDED_CLASSES)
    assert (len(OV_COCO_CLASSES), len(NOVEL_CLASSES), len(EXCLUDED_CLASSES)) == (65, 17, 15)


def test_novel_classes_have_the_published_places() -> None:
    metadata = MetadataCatalog.get("coco_ov_train")
    novel = set(metadata.novel_classes)
    places = [number for number, name in enumerate(metadata.thing_classes) if name in novel]
    assert places == NOVEL_INDICES
    assert len(metadata.base_classes) == 48
    assert metadata.thing_classes[-1] == "toothbrush"


def test_contiguous_ids_follow_the_ids_of_coco() -> None:
    numbers = MetadataCatalog.get("coco_ov_val").thing_dataset_id_to_contiguous_id
    assert numbers[1] == 0
    assert numbers[90] == 64
    assert 10 not in numbers, "traffic light is excluded"
    assert sorted(numbers, key=numbers.__getitem__) == sorted(numbers)


def test_every_class_can_be_called_by_a_name_of_no_other_class(catalogs: None) -> None:
    names = list(COCO_THINGS.values())
    words = coco_synonyms(names)
    taken = {*names, *COCO_STUFF.values()}
    assert all(words)
    assert not any(word in taken for group in words for word in group)
    things = Vocabulary.from_names(names)
    groups = tuple(map(tuple, words))
    other = Vocabulary(names=things.names, base_mask=things.base_mask, synonyms=groups)
    assert not set(other.swap_synonyms().names) & set(names)
    for name in ("coco_ov_val", "coco_80_val", "coco_2017_val_panoptic_regions"):
        metadata = MetadataCatalog.get(name)
        assert metadata.class_synonyms == coco_synonyms(metadata.thing_classes)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", {1: ["person"], 3: ["person"], 6: ["zebra"]}),
        ("val", {11: ["dog"], 13: ["zebra"]}),
    ],
)
def test_training_has_base_boxes_alone_and_validation_all_65_classes(
    coco_root: Path, catalogs: None, split: str, expected: dict[int, list[str]]
) -> None:
    prepare_ov_coco(coco_root)
    register_coco_ov(coco_root, prefix="tiny_")
    metadata = MetadataCatalog.get(f"tiny_coco_ov_{split}")
    names, records = metadata.thing_classes, DatasetCatalog.get(f"tiny_coco_ov_{split}")
    shown = {r["image_id"]: [names[a["category_id"]] for a in r["annotations"]] for r in records}
    assert shown == expected
    if split == "train":
        mask = [[1.5, 2, 11.25, 2, 11.25, 22, 1.5, 22]]
        assert records[0]["annotations"][0]["segmentation"] == mask
    listed = json.loads(Path(metadata.json_file).read_text())["categories"]
    assert [row["name"] for row in listed] == names


def test_image_list_has_every_training_image(coco_root: Path, catalogs: None) -> None:
    register_coco_ov(coco_root, prefix="tiny_")
    records = DatasetCatalog.get("tiny_coco_2017_train_images")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert not any("annotations" in record for record in records)


def test_an_unprepared_root_names_the_command(coco_root: Path, catalogs: None) -> None:
    register_coco_ov(coco_root, prefix="tiny_")
    with pytest.raises(FileNotFoundError, match=r"seen_2_65_cat.*prepare_ov_coco\.py"):
        DatasetCatalog.get("tiny_coco_ov_train")


def test_the_official_file_in_place_of_the_prepared_one_is_refused(
    coco_root: Path, catalogs: None
) -> None:
    register_coco_ov(coco_root, prefix="tiny_")
    files = coco_root / "coco" / "annotations"
    official = (files / "instances_train2017.json").read_text()
    (files / "instances_train2017_seen_2_65_cat.json").write_text(official)
    with pytest.raises(ValueError, match=r"traffic light.*prepare_ov_coco\.py"):
        DatasetCatalog.get("tiny_coco_ov_train")
