from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.data.region_mapper import RegionMapper

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "preprocess.npz")
MAPPER = RegionMapper(image_size=160, crop_size=64, patch_size=16, pad_to_square=True)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    Image.fromarray(GOLDEN["image"]).save(tmp_path / "a.png")
    ids = np.zeros((90, 131, 3), np.uint8)
    ids[GOLDEN["mask"] > 0] = (7, 0, 0)
    ids[80:, :, 1] = 1
    ids[80:, :, 0] = 0
    ids[:3, :3] = (9, 0, 0)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    mask = GOLDEN["mask"] > 0
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    bbox = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {
        "file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "image_id": 1,
        "segments_info": [
            {"id": 7, "category_id": 3, "isthing": True, "bbox": [int(v) for v in bbox]},
            {"id": 256, "category_id": 81, "isthing": False, "bbox": [0, 80, 131, 10]},
            {"id": 9, "category_id": 5, "isthing": True, "bbox": [0, 0, 3, 3]},
        ],
    }


def test_small_segments_are_left_out_and_classes_kept(record) -> None:
    item = MAPPER(record)
    assert item["region_classes"].tolist() == [3, 81]
    assert item["region_is_thing"].tolist() == [True, False]


def test_the_mask_on_the_patch_grid_is_the_published_one(record) -> None:
    mask = MAPPER._shrink(GOLDEN["mask"] > 0)
    assert mask.shape == (10, 10)
    np.testing.assert_array_equal(mask.numpy(), GOLDEN["mask_small"].astype(bool))


def test_the_box_of_stuff_leaves_out_its_last_row_and_column(record) -> None:
    scale = 160 / 131
    box = MAPPER(record)["boxes"][1]
    torch.testing.assert_close(box, torch.tensor([0.0, 80.0, 130.0, 89.0]) * scale)


def test_a_rectangle_keeps_its_grid_without_padding(record) -> None:
    mapper = RegionMapper(image_size=160, crop_size=64, patch_size=16, pad_to_square=False)
    assert mapper(record)["masks"].shape[1:] == (7, 10)


def test_a_map_of_another_size_is_named(record, tmp_path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "ids.png")
    with pytest.raises(ValueError, match=r"ids\.png is 10 x 10 px, but .* is 131 x 90"):
        MAPPER(record)


def test_no_fitting_segment_gives_empty_tensors(record, tmp_path) -> None:
    ids = np.zeros((90, 131, 3), np.uint8)
    ids[:3, :3, 0] = 9
    Image.fromarray(ids).save(tmp_path / "ids.png")
    item = MAPPER({**record, "segments_info": record["segments_info"][2:]})
    assert item["boxes"].shape == (0, 4)
    assert item["masks"].shape == (0, 10, 10)
    assert item["crops"].shape == (0, 3, 64, 64)


def test_without_a_crop_size_nothing_is_cut(record) -> None:
    mapper = RegionMapper(image_size=160, crop_size=None, patch_size=16, pad_to_square=True)
    item, whole = mapper(record), MAPPER(record)
    assert "crops" not in item
    for key in ("image", "boxes", "masks", "region_classes", "region_is_thing"):
        assert torch.equal(item[key], whole[key]), key


@pytest.mark.parametrize("size", [160, 152, 151, 136])
def test_masks_of_any_size_lie_where_the_object_does(size: int) -> None:
    mapper = RegionMapper(image_size=size, crop_size=None, patch_size=16, pad_to_square=True)
    mask = np.zeros((size, size), bool)
    mask[size // 2 :, : size // 2] = True
    grid = mapper._shrink(mask).numpy()
    side = -(-size // 16)
    assert grid.shape == (side, side)
    half = size / 2 / 16
    rows, columns = np.flatnonzero(grid[:, 0]), np.flatnonzero(grid[round(size / 16) - 1])
    # A cell counts that the object merely touches.
    assert half - 1.5 <= rows[0] <= half
    assert half <= columns[-1] + 1 <= half + 1.5
    assert abs(rows[-1] + 1 - size / 16) <= 0.5
