import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

from clipself_d2.data.datasets.instances import (
    class_metadata,
    image_path,
    load_images,
    load_instances,
)


def test_metadata_counts_from_zero_in_the_order_of_the_ids() -> None:
    metadata = class_metadata({7: "cat", 2: "dog", 9: "cow"}, {"cat"})
    assert metadata == {
        "thing_classes": ["dog", "cat", "cow"],
        "novel_classes": ["cat"],
        "base_classes": ["dog", "cow"],
        "thing_dataset_id_to_contiguous_id": {2: 0, 7: 1, 9: 2},
    }


def test_records_are_those_of_detectron2(coco_root: Path, catalogs: None) -> None:
    file = coco_root / "coco" / "annotations" / "instances_train2017.json"
    images = coco_root / "coco" / "train2017"
    content = json.loads(file.read_text())
    rle = {"size": [30, 40], "counts": [100, 50, 1050]}
    content["annotations"][1] |= {"segmentation": rle, "iscrowd": 1}
    file.write_text(json.dumps(content))
    theirs = load_coco_json(str(file), str(images), "coco_like_d2")
    names = [row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])]
    ours = load_instances(file, images, names)
    assert ours == theirs
    mask = mask_util.decode(ours[0]["annotations"][1]["segmentation"])
    assert np.flatnonzero(mask.T).tolist() == list(range(100, 150))


def test_dropped_classes_lose_their_boxes_and_keep_their_number(coco_root: Path) -> None:
    file = coco_root / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    names = [row["name"] for row in content["categories"]]
    records = load_instances(
        file, coco_root / "coco" / "val2017", names, drop_classes=["dog", "teddy bear"]
    )
    assert [len(record["annotations"]) for record in records] == [0, 0, 1]
    assert records[2]["annotations"][0]["category_id"] == names.index("zebra")
    assert records[2]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS


def test_an_annotation_without_a_valid_polygon_is_left_out(coco_root: Path) -> None:
    file = coco_root / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    del content["annotations"][1]["segmentation"]
    file.write_text(json.dumps(content))
    names = [row["name"] for row in content["categories"]]
    records = load_instances(file, coco_root / "coco" / "val2017", names)
    assert [len(record["annotations"]) for record in records] == [0, 1, 1]
    assert "segmentation" not in records[1]["annotations"][0]


@pytest.mark.parametrize(
    ("row", "prefer_url", "expected"),
    [
        ({"file_name": "1.jpg", "coco_url": "http://x/val2017/2.jpg"}, False, "/r/1.jpg"),
        ({"file_name": "1.jpg", "coco_url": "http://x/val2017/2.jpg"}, True, "/r/val2017/2.jpg"),
        ({"coco_url": "http://x/val2017/2.jpg"}, False, "/r/val2017/2.jpg"),
        ({"file_name": "1.jpg"}, True, "/r/1.jpg"),
    ],
)
def test_an_image_is_found_by_name_or_by_url(row: dict, prefer_url: bool, expected: str) -> None:
    assert image_path(row, Path("/r"), prefer_url=prefer_url) == expected


def test_missing_images_are_counted_and_the_first_named(coco_root: Path) -> None:
    images = coco_root / "coco" / "train2017"
    for number in (2, 5):
        (images / f"{number:012d}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000002\.jpg and 1 more are missing; fetch"):
        load_images(
            coco_root / "coco" / "annotations" / "instances_train2017.json", images, remedy="fetch"
        )
