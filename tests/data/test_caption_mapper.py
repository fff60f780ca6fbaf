from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.data.caption_mapper import CaptionMapper, fit_sides, mirror_boxes
from clipself_d2.data.region_sampler import RegionSampler


class HalvesSampler:
    """Stands for a region sampler: always the left half."""

    def draw(self, record, size, rng):
        from clipself_d2.data.region_sampler import DrawnRegions

        boxes = np.array([[0.0, 0.0, size[0] / 2, size[1]]])
        return DrawnRegions(boxes, boxes)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    captions = [f"caption {number}" for number in range(7)]
    return {"file_name": str(tmp_path / "a.png"), "image_id": 1, "captions": captions}


def make(**overrides: object) -> CaptionMapper:
    options = {"sampler": HalvesSampler(), "shortest_size": 800}
    return CaptionMapper(**{**options, "crop_size": 16, "flip_probability": 0.0, **overrides})


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_and_crops_follow_a_mirrored_picture(record, flip: float) -> None:
    item = make(flip_probability=flip)(record, np.random.default_rng(0), 80)
    image, box = item["image"], item["boxes"][0].int().tolist()
    assert image.shape == (3, 60, 80)
    assert box == ([40, 0, 80, 60] if flip else [0, 0, 40, 60])
    # The half that is bright, but for the resampled border.
    left, top, right, bottom = box
    assert int(image[:, top:bottom, left + 3 : right - 3].min()) == 200
    assert item["crops"].shape == (1, 3, 16, 16)
    assert int(item["crops"][0, :, 8, 8].min()) == 200


def test_the_caption_is_one_of_the_first_five(record) -> None:
    rng = np.random.default_rng(0)
    drawn = {make()(record, rng, 80)["caption"] for _ in range(60)}
    assert drawn == {f"caption {number}" for number in range(5)}


def test_an_item_depends_on_the_generator_alone(record) -> None:
    sampler = RegionSampler(source="random", max_boxes=4)
    mapper = make(sampler=sampler, flip_probability=0.5)
    first, second = (mapper(record, np.random.default_rng(3), 80) for _ in range(2))
    assert first["caption"] == second["caption"]
    assert first["boxes"].tolist() == second["boxes"].tolist()


def test_without_a_sampler_the_model_finds_the_regions(record) -> None:
    item = make(sampler=None)(record, np.random.default_rng(0), 80)
    assert "boxes" not in item
    assert "crops" not in item


def test_no_crops_are_cut_for_a_teacher_on_the_whole_picture(record) -> None:
    item = make(has_crops=False)(record, np.random.default_rng(0), 80)
    assert "boxes" in item
    assert "crops" not in item


def test_pieces_are_left_for_the_device_to_resize(record) -> None:
    item = make(crop_size=None)(record, np.random.default_rng(0), 80)
    assert [tuple(piece.shape) for piece in item["crops"]] == [(3, 30, 20)]


@pytest.mark.parametrize("captions", [[], ["a dog", " "]])
def test_empty_captions_name_the_image(record, captions) -> None:
    with pytest.raises(ValueError, match="image 1 has no caption or an empty one"):
        make()({**record, "captions": captions}, np.random.default_rng(0), 80)


def test_a_record_without_captions_has_none(record) -> None:
    del record["captions"]
    assert "caption" not in make()(record, np.random.default_rng(0), 80)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 300), (1067, 800)), ((900, 300), (1333, 444)), ((100, 100), (800, 800))],
)
def test_a_picture_is_scaled_to_the_first_limit_that_it_meets(size, expected) -> None:
    assert fit_sides(Image.new("RGB", size), 1333, 800).size == expected


def test_mirroring_twice_is_the_identity() -> None:
    boxes = np.array([[1.0, 2, 5, 8], [0, 0, 10, 10]])
    assert mirror_boxes(mirror_boxes(boxes, 10.0), 10.0).tolist() == boxes.tolist()
    assert mirror_boxes(boxes, 10.0)[0].tolist() == [5, 2, 9, 8]


@pytest.mark.parametrize(("longest", "shortest"), [(80, 800), (200, 45)])
def test_a_picture_as_it_was_read_says_its_size_and_has_the_same_regions(
    record, longest: int, shortest: int
) -> None:
    here, there = (
        make(resize_image=resize, shortest_size=shortest, flip_probability=1.0)(
            record, np.random.default_rng(0), longest
        )
        for resize in (True, False)
    )
    assert there["image"].shape == (3, 30, 40)
    assert there["longest_side"] == here["image"].shape[2]
    assert torch.equal(there["boxes"], here["boxes"])
    assert torch.equal(there["crops"], here["crops"])
    assert "longest_side" not in here
