"""Records to train on: as Detectron2's, without what cannot be learned, whoever registered them."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from clipself_d2.config import add_clipself_config
from clipself_d2.data.build import build_detection_train_loader_from_cfg
from clipself_d2.data.datasets.custom import resolve_dataset_names
from clipself_d2.data.training_records import keep_learnable, read_training_records

SQUARE = [2.0, 2, 12, 2, 12, 12, 2, 12]
OURS, DETECTRON2 = "coco_json", "register_coco_instances"
BOTH = pytest.mark.parametrize("kind", [OURS, DETECTRON2])
Row = dict[str, Any]
Register = Callable[[str, list[Row]], str]
Build = Callable[..., CfgNode]
Read = Callable[..., list[Row]]
Log = pytest.LogCaptureFixture


def row(number: int, **changes: Any) -> Row:
    """Annotation of image 1, 2 or 3 in turn."""
    return {
        "id": number,
        "image_id": 1 + number % 3,
        "category_id": 1,
        "bbox": [2, 2, 10, 10],
        "area": 100.0,
        "iscrowd": 0,
        "segmentation": [SQUARE],
    } | changes


@pytest.fixture
def register(tmp_path: Path, write_picture: Callable[..., Path], catalogs: None) -> Register:
    """Function that registers annotations of three pictures of 40 x 30 px."""

    def add(kind: str, rows: list[Row]) -> str:
        file, folder = tmp_path / "rows.json", tmp_path / "pictures"
        images = [
            {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30}
            for number in (1, 2, 3)
        ]
        for image in images:
            write_picture(folder / str(image["file_name"]))
        categories = [{"id": 1, "name": "cat"}]
        file.write_text(
            json.dumps({"images": images, "annotations": rows, "categories": categories})
        )
        if kind == DETECTRON2:
            register_coco_instances("training_pets", {}, str(file), str(folder))
            return "training_pets"
        (name,) = resolve_dataset_names([f"coco_json:{file}:{folder}"])
        return name

    return add


@pytest.fixture
def build(caplog: Log) -> Build:
    """Function that makes a config of a training set."""
    caplog.set_level(logging.WARNING)

    def make(name: str, **model: Any) -> CfgNode:
        cfg = get_cfg()
        add_clipself_config(cfg)
        cfg.DATASETS.TRAIN = (name,)
        cfg.INPUT.FORMAT = "RGB"
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.IMS_PER_BATCH = 2
        for key, value in model.items():
            cfg.MODEL[key] = value
        return cfg

    return make


@pytest.fixture
def read(register: Register, build: Build) -> Read:
    """Function that registers annotations and reads the records to train on."""
    return lambda kind, rows, **model: read_training_records(build(register(kind, rows), **model))


def kept(records: list[Row]) -> dict[int, int]:
    """Number of objects by image."""
    return {record["image_id"]: len(record["annotations"]) for record in records}


@BOTH
def test_two_boxes_of_zero_width_train_with_one_warning(
    register: Register, build: Build, caplog: Log, kind: str
) -> None:
    # As COCO's own train2017 has them.
    rows = [row(number) for number in range(6)]
    rows[1]["bbox"], rows[5]["bbox"] = [2, 2, 0, 10], [3, 3, 5, 0]
    cfg = build(register(kind, rows))
    records = read_training_records(cfg)
    assert kept(records) == {1: 2, 2: 1, 3: 1}
    assert len(caplog.messages) == 1
    assert re.search("2 (rows|objects) .*box of (zero|no) .*left out", caplog.messages[0])
    batch = next(iter(build_detection_train_loader_from_cfg(cfg)))
    assert all(len(item["instances"]) for item in batch)


@BOTH
def test_objects_without_masks_are_left_out_only_where_masks_are_learned(
    register: Register, build: Build, caplog: Log, kind: str
) -> None:
    rows = [row(number) for number in range(6)]
    del rows[0]["segmentation"]
    rows[1]["segmentation"] = []
    name = register(kind, rows)
    assert sum(kept(read_training_records(build(name, MASK_ON=False))).values()) == 6
    assert caplog.messages == []
    assert kept(read_training_records(build(name, MASK_ON=True))) == {1: 1, 2: 1, 3: 2}
    assert caplog.messages == [
        "training: 2 objects without a mask are left out, as MODEL.MASK_ON is set"
    ]


@BOTH
@pytest.mark.parametrize(
    ("changes", "has_masks", "words"),
    [
        ({"bbox": [2, 2, 0, 10]}, False, "has no object with a box that is no crowd;"),
        ({"bbox": [2, 2, -5, 10]}, False, "has no object with a box that is no crowd;"),
        ({"iscrowd": 1}, False, "has no object with a box that is no crowd;"),
        ({"segmentation": []}, True, "has no object with a box and a mask that"),
        ({"segmentation": [[2, 2, 9, 9, 5, 5]]}, True, "has no object with a box and a mask"),
    ],
)
def test_a_set_of_which_nothing_is_left_is_refused(
    register: Register, build: Build, kind: str, changes: Row, has_masks: bool, words: str
) -> None:
    name = register(kind, [row(number, **changes) for number in range(3)])
    with pytest.raises(ValueError, match=words) as caught:
        read_training_records(build(name, MASK_ON=has_masks))
    assert str(caught.value).startswith(f"DATASETS.TRAIN {(name,)}")


@BOTH
def test_flat_polygons_are_left_out_with_one_warning(read: Read, caplog: Log, kind: str) -> None:
    rows = [row(number) for number in range(3)]
    rows[0]["segmentation"] = [[2, 2, 9, 9, 5, 5], SQUARE]
    rows[1]["segmentation"] = [[2, 2, 9, 9, 5, 5]]
    records = read(kind, rows, MASK_ON=True)
    assert kept(records) == {1: 1, 3: 1}
    assert [record["annotations"][0]["segmentation"] for record in records] == [[SQUARE]] * 2
    assert len(caplog.messages) == 1
    assert re.search("2 (rows|objects) have .*polygon", caplog.messages[0])


@BOTH
def test_a_set_without_annotations_is_refused(read: Read, kind: str) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN .* has no object with a box"):
        read(kind, [])


@BOTH
def test_objects_whose_iscrowd_is_null_are_learned(read: Read, kind: str) -> None:
    records = read(kind, [row(number, iscrowd=None) for number in range(3)])
    assert [item["iscrowd"] for record in records for item in record["annotations"]] == [0] * 3


def test_no_data_set_is_refused_by_key(build: Build) -> None:
    cfg = build("")
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        read_training_records(cfg)


@BOTH
def test_faults_are_refused_whoever_registered_the_file(read: Read, kind: str) -> None:
    with pytest.raises(ValueError, match=r"rows\.json has a bbox that is not four .* in entry 1 "):
        read(kind, [row(0), row(1, bbox=[1, 2, 3])])


def test_records_of_anybody_lose_what_cannot_be_learned(
    build: Build, catalogs: None, caplog: Log
) -> None:
    def item(box: list[float], mode: BoxMode = BoxMode.XYXY_ABS, **more: Any) -> Row:
        return {"bbox": box, "bbox_mode": mode, "category_id": 0, **more}

    records = [
        {"file_name": "a.png", "annotations": [item([1, 1, 5, 5]), item([5, 1, 5, 5])]},
        {"file_name": "b.png", "annotations": [item([5, 5, 1, 1])]},
        {"file_name": "c.png", "annotations": [item([5, 5, 1, 1], BoxMode.XYWH_ABS)]},
        {"file_name": "d.png", "annotations": [item([5, 5, 1, 1], BoxMode.XYWH_ABS, iscrowd=1)]},
        # Rotated boxes have five numbers, and are none of ours.
        {"file_name": "e.png", "annotations": [item([5, 5, 1, 1, 30], BoxMode.XYWHA_ABS)]},
    ]
    DatasetCatalog.register("training_of_a_user", lambda: records)
    cfg = build("training_of_a_user")
    found = [record["file_name"] for record in read_training_records(cfg)]
    assert found == ["a.png", "c.png", "e.png"]
    assert caplog.messages == [
        "training: 2 objects with a box of no or negative width or height are left out"
    ]
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert len(read_training_records(cfg)) == 5


def test_records_without_annotations_stay_as_they_are(build: Build, catalogs: None) -> None:
    records = [{"file_name": "a.png"}, {"file_name": "b.png"}]
    DatasetCatalog.register("training_of_pictures", lambda: records)
    assert read_training_records(build("training_of_pictures")) == records


def test_crowds_need_no_mask(caplog: Log) -> None:
    box = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS}
    records = [{"annotations": [{**box, "iscrowd": 1}, {**box, "iscrowd": 0}, dict(box)]}, {}]
    keep_learnable(records, needs_masks=True)
    assert records == [{"annotations": [{**box, "iscrowd": 1}]}, {}]
    assert len(caplog.messages) == 1
    assert "2 objects without a mask" in caplog.messages[0]


def test_masks_of_pixels_are_masks() -> None:
    box = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS}
    masks = [np.ones((4, 4), np.uint8), {"size": [4, 4], "counts": "`0"}, [np.array(SQUARE)]]
    records = [{"annotations": [{**box, "segmentation": mask} for mask in masks]}]
    keep_learnable(records, needs_masks=True)
    assert len(records[0]["annotations"]) == 3
