import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.data.region_sampler import ProposalFile, RegionSampler

GRID = RegionSampler(source="grid", max_split=3, max_boxes=4)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    pixels = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "image_id": 5}


def mapper(sampler: RegionSampler = GRID, **options: object) -> DistillMapper:
    return DistillMapper(sampler=sampler, **{"crop_size": 32, **options})


def test_grid_items_hold_boxes_of_the_scaled_picture_and_as_many_crops(record) -> None:
    item = mapper()(record, np.random.default_rng(0), 96)
    assert item["image"].shape == (3, 72, 96)
    assert item["image"].dtype == torch.uint8
    assert item["crops"].shape == (len(item["boxes"]), 3, 32, 32)
    assert item["boxes"][:, 2].max() <= 96
    assert item["boxes"][:, 3].max() <= 72
    assert (item["height"], item["width"]) == (60, 80)


def test_the_same_generator_gives_the_same_item(record) -> None:
    first, second = (mapper()(record, np.random.default_rng(4), 96) for _ in range(2))
    assert torch.equal(first["boxes"], second["boxes"])
    assert torch.equal(first["crops"], second["crops"])


def test_the_crop_of_a_proposal_is_cut_from_the_original(record, tmp_path) -> None:
    rows = [{"image_id": 5, "bbox": [20, 20, 20, 10]}]
    (tmp_path / "p.json").write_text(json.dumps({"annotations": rows}))
    sampler = RegionSampler(source="proposals", proposals=ProposalFile(tmp_path / "p.json"))
    item = mapper(sampler)(record, np.random.default_rng(0), 96)
    torch.testing.assert_close(item["boxes"], torch.tensor([[24.0, 24.0, 48.0, 36.0]]))
    pixels = np.asarray(Image.open(record["file_name"]))
    expected = Image.fromarray(pixels[18:32, 15:45]).resize((32, 15), Image.Resampling.BICUBIC)
    got = item["crops"][0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(got[8:23], np.asarray(expected))
    assert got[:8].max() == 0


def test_crops_for_the_device_are_the_pixels_of_the_original(record) -> None:
    sampler = RegionSampler(source="grid", max_split=1)
    item = mapper(sampler, crop_size=None, whole_image=True)(record, np.random.default_rng(0), 96)
    pixels = torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1)
    for key in ("crops", "whole"):
        assert len(item[key]) == 1
        assert torch.equal(item[key][0], pixels)


def test_the_sizes_of_ragged_crops_are_those_of_their_boxes(record) -> None:
    item = mapper(crop_size=None)(record, np.random.default_rng(3), 96)
    sides = (item["boxes"][:, 2:] - item["boxes"][:, :2]) / 1.2
    got = torch.tensor([[crop.shape[2], crop.shape[1]] for crop in item["crops"]]).float()
    assert float((got - sides).abs().max()) <= 1.0


def test_the_size_is_that_of_the_call(record) -> None:
    item = mapper()(record, np.random.default_rng(0), 48)
    assert item["image"].shape == (3, 36, 48)
    assert item["boxes"].max() <= 48


def test_labelled_regions_have_classes_and_no_crops(record) -> None:
    rows = [{"bbox": [0.0, 0.0, 40.0, 30.0], "bbox_mode": 1, "category_id": 7}]
    sampler = RegionSampler(source="labels")
    item = mapper(sampler)({**record, "annotations": rows}, np.random.default_rng(0), 96)
    assert item["region_classes"].tolist() == [7]
    assert "crops" not in item
    torch.testing.assert_close(item["boxes"], torch.tensor([[0.0, 0.0, 48.0, 36.0]]))


def test_an_image_for_the_device_is_the_original_with_the_boxes_of_the_resized_one(record) -> None:
    ready, raw = (
        mapper(resize_image=resize)(record, np.random.default_rng(3), 96)
        for resize in (True, False)
    )
    assert torch.equal(raw["boxes"], ready["boxes"])
    assert torch.equal(raw["crops"], ready["crops"])
    assert raw["longest_side"] == 96
    pixels = np.array(Image.open(record["file_name"]))
    assert torch.equal(raw["image"], torch.from_numpy(pixels).permute(2, 0, 1))
