import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.data.distill_mapper import DistillMapper, mirror_boxes
from clipself_d2.data.region_sampler import DrawnRegions, ProposalFile, RegionSampler

GRID = RegionSampler(source="grid", max_split=3, max_boxes=4)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    pixels = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "image_id": 5}


def draw(record, *, sampler=GRID, seed: int = 0, size: int = 96, **options) -> dict:
    mapper = DistillMapper(sampler=sampler, **{"crop_size": 32, **options})
    return mapper(record, np.random.default_rng(seed), size)


def test_grid_items_hold_boxes_of_the_scaled_picture_and_as_many_crops(record) -> None:
    item = draw(record)
    assert item["image"].shape == (3, 72, 96)
    assert item["image"].dtype == torch.uint8
    assert item["crops"].shape == (len(item["boxes"]), 3, 32, 32)
    assert item["boxes"][:, 2].max() <= 96
    assert item["boxes"][:, 3].max() <= 72
    assert (item["height"], item["width"]) == (60, 80)
    # The size is that of the call.
    smaller = draw(record, size=48)
    assert smaller["image"].shape == (3, 36, 48)
    assert smaller["boxes"].max() <= 48


def test_the_crop_of_a_proposal_is_cut_from_the_original(record, tmp_path) -> None:
    rows = [{"image_id": 5, "bbox": [20, 20, 20, 10]}]
    (tmp_path / "p.json").write_text(json.dumps({"annotations": rows}))
    sampler = RegionSampler(source="proposals", proposals=ProposalFile(tmp_path / "p.json"))
    item = draw(record, sampler=sampler)
    torch.testing.assert_close(item["boxes"], torch.tensor([[24.0, 24.0, 48.0, 36.0]]))
    pixels = np.asarray(Image.open(record["file_name"]))
    expected = Image.fromarray(pixels[18:32, 15:45]).resize((32, 15), Image.Resampling.BICUBIC)
    got = item["crops"][0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(got[8:23], np.asarray(expected))
    assert got[:8].max() == 0


def test_crops_for_the_device_are_the_pixels_of_the_original(record) -> None:
    sampler = RegionSampler(source="grid", max_split=1)
    item = draw(record, sampler=sampler, crop_size=None, whole_image=True)
    pixels = torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1)
    for key in ("crops", "whole"):
        assert len(item[key]) == 1
        assert torch.equal(item[key][0], pixels)


def test_the_sizes_of_ragged_crops_are_those_of_their_boxes(record) -> None:
    item = draw(record, crop_size=None, seed=3)
    sides = (item["boxes"][:, 2:] - item["boxes"][:, :2]) / 1.2
    got = torch.tensor([[crop.shape[2], crop.shape[1]] for crop in item["crops"]]).float()
    assert float((got - sides).abs().max()) <= 1.0


def test_labelled_regions_have_classes_and_no_crops(record) -> None:
    rows = [{"bbox": [0.0, 0.0, 40.0, 30.0], "bbox_mode": 1, "category_id": 7}]
    item = draw({**record, "annotations": rows}, sampler=RegionSampler(source="labels"))
    assert item["region_classes"].tolist() == [7]
    assert "crops" not in item
    torch.testing.assert_close(item["boxes"], torch.tensor([[0.0, 0.0, 48.0, 36.0]]))


@pytest.mark.parametrize("shortest", [None, 800, 45])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_an_image_for_the_device_is_the_original_with_the_boxes_of_the_resized_one(
    record, shortest: int | None, flip: float
) -> None:
    ready, raw = (
        draw(record, seed=3, resize_image=resize, shortest_size=shortest, flip_probability=flip)
        for resize in (True, False)
    )
    assert torch.equal(raw["boxes"], ready["boxes"])
    assert torch.equal(raw["crops"], ready["crops"])
    assert raw["longest_side"] == ready["image"].shape[2] == (60 if shortest == 45 else 96)
    assert "longest_side" not in ready
    pixels = torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1)
    assert torch.equal(raw["image"], pixels.flip(2) if flip else pixels)


class HalvesSampler:
    """Stands for a region sampler: always the left half."""

    def draw(self, record, size, rng):
        boxes = np.array([[0.0, 0.0, size[0] / 2, size[1]]])
        return DrawnRegions(boxes, boxes)


@pytest.fixture
def captioned(tmp_path: Path) -> dict[str, object]:
    """A picture of a bright left half and a dark right one, with seven captions."""
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20] = 200
    Image.fromarray(pixels).save(tmp_path / "b.png")
    captions = [f"caption {number}" for number in range(7)]
    return {"file_name": str(tmp_path / "b.png"), "image_id": 1, "captions": captions}


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_crops_follow_a_mirrored_picture(captioned, flip: float) -> None:
    item = draw(captioned, sampler=HalvesSampler(), size=80, flip_probability=flip)
    image, box = item["image"], item["boxes"][0].int().tolist()
    assert image.shape == (3, 60, 80)
    assert box == ([40, 0, 80, 60] if flip else [0, 0, 40, 60])
    # The half that is bright, but for the resampled border.
    left, top, right, bottom = box
    assert int(image[:, top:bottom, left + 3 : right - 3].min()) == 200
    assert item["crops"].shape == (1, 3, 32, 32)
    assert int(item["crops"][0, :, 16, 16].min()) == 200


def test_the_caption_is_one_of_the_first_five(captioned) -> None:
    drawn = {draw(captioned, seed=seed)["caption"] for seed in range(60)}
    assert drawn == {f"caption {number}" for number in range(5)}


def test_an_item_depends_on_the_generator_alone(captioned) -> None:
    sampler = RegionSampler(source="random", max_boxes=4)
    first, second = (
        draw(captioned, sampler=sampler, seed=3, flip_probability=0.5) for _ in range(2)
    )
    assert first["caption"] == second["caption"]
    assert torch.equal(first["boxes"], second["boxes"])
    assert torch.equal(first["crops"], second["crops"])


def test_without_a_sampler_the_model_finds_the_regions(captioned) -> None:
    assert not {"boxes", "crops"} & draw(captioned, sampler=None).keys()


def test_no_crops_are_cut_for_a_teacher_on_the_whole_picture(captioned) -> None:
    item = draw(captioned, has_crops=False)
    assert "boxes" in item
    assert "crops" not in item


@pytest.mark.parametrize("captions", [[], ["a dog", " "]])
def test_empty_captions_name_the_image(captioned, captions) -> None:
    with pytest.raises(ValueError, match="image 1 has no caption or an empty one"):
        draw({**captioned, "captions": captions})


def test_a_record_without_captions_has_none(record) -> None:
    assert "caption" not in draw(record)


def test_mirroring_twice_is_the_identity() -> None:
    boxes = np.array([[1.0, 2, 5, 8], [0, 0, 10, 10]])
    assert mirror_boxes(mirror_boxes(boxes, 10.0), 10.0).tolist() == boxes.tolist()
    assert mirror_boxes(boxes, 10.0)[0].tolist() == [5, 2, 9, 8]
