"""Pictures and segments stay together through augmentations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.transforms import RandomFlip, Resize
from PIL import Image

from clipself_d2.data.detection_mapper import RandomSquareCrop
from clipself_d2.data.panoptic_mapper import PanopticMapper

LEFT, RIGHT, CROWD = 70_000, 300, 9


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    """A red half on the left, a green one on the right, a blue strip of crowd at the bottom."""
    pixels, ids = np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40), np.int64)
    for part, colour, number in (
        (np.s_[:15, :20], 0, LEFT),
        (np.s_[:15, 20:], 1, RIGHT),
        (np.s_[15:18], 2, CROWD),
    ):
        pixels[(*part, colour) if isinstance(part, tuple) else (part, slice(None), colour)] = 255
        ids[part] = number
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(colours).save(tmp_path / "map.png")
    segments = [
        {"id": LEFT, "category_id": 4},
        {"id": RIGHT, "category_id": 2},
        {"id": CROWD, "category_id": 4, "iscrowd": 1},
    ]
    return {
        "file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "map.png"),
        "image_id": 1,
        "segments_info": segments,
    }


def test_masks_follow_the_picture_and_crowds_are_left_out(record) -> None:
    augmentations = [Resize((40, 80)), RandomFlip(prob=1.0)]
    item = PanopticMapper(augmentations=augmentations)(record)
    instances = item["instances"]
    assert instances.gt_classes.tolist() == [4, 2]
    masks = instances.gt_masks.tensor
    assert masks.shape == (2, 40, 80)
    inside = slice(2, 28)  # away from the border, where a resized picture is a mixture
    assert masks[0, inside, 42:].all()
    assert masks[1, inside, :38].all()
    red = item["image"][0] > 200
    assert torch.equal(red[inside, 42:], masks[0, inside, 42:])
    assert not red[inside, :38].any()
    assert (item["height"], item["width"]) == (20, 40)


def test_segments_outside_of_a_crop_are_left_out(record) -> None:
    np.random.seed(0)
    for _ in range(8):
        item = PanopticMapper(augmentations=[RandomSquareCrop(10)])(record)
        masks = item["instances"].gt_masks.tensor
        assert masks.shape[1:] == (10, 10)
        assert masks.flatten(1).any(1).all()


def test_a_map_of_another_picture_is_refused(record, tmp_path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match=r"map\.png has no pixel of segment 9"):
        PanopticMapper(augmentations=[])(record)
    Image.new("RGB", (30, 20)).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match="is 30 x 20 px"):
        PanopticMapper(augmentations=[])(record)
