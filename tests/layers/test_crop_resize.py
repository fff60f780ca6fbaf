from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.layers import resize_crops

CPU = torch.device("cpu")
PHOTOGRAPHS = Path(__file__).parents[1] / "golden" / "coco_panoptic_sample" / "input_images"


def by_pil(image: Image.Image, size: int) -> np.ndarray:
    scale = size / max(image.size)
    small = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return np.asarray(canvas, np.float32)


@pytest.mark.parametrize("size", [64, 224])
def test_photographs_are_resized_as_pil_does(size: int) -> None:
    rng = np.random.default_rng(0)
    means = []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        image = Image.open(path).convert("RGB")
        for _ in range(6):
            left, top = rng.integers(0, image.width // 2), rng.integers(0, image.height // 2)
            right, bottom = left + rng.integers(20, 300), top + rng.integers(20, 200)
            crop = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
            pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
            ours = resize_crops([pixels], size, CPU)[0].permute(1, 2, 0).numpy()
            difference = np.abs(ours - by_pil(crop, size))
            assert difference.mean() < 0.15
            assert (difference > 2).mean() < 0.002
            means.append(difference.mean())
    assert np.mean(means) < 0.03


def test_a_crop_of_the_right_size_is_kept_bit_for_bit() -> None:
    crop = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert torch.equal(resize_crops([crop], 32, CPU)[0], crop.float())


def test_a_constant_stays_constant_and_is_centred_on_black() -> None:
    result = resize_crops([torch.full((3, 10, 20), 77, dtype=torch.uint8)], 40, CPU)[0]
    assert torch.equal(result[:, 10:30], torch.full((3, 20, 40), 77.0))
    assert not result[:, :10].any()
    assert not result[:, 30:].any()


def test_values_are_whole_numbers_from_0_to_255() -> None:
    noise = torch.randint(0, 2, (3, 31, 17), dtype=torch.uint8) * 255
    result = resize_crops([noise], 24, CPU)
    assert torch.equal(result, result.round())
    assert float(result.min()) >= 0
    assert float(result.max()) <= 255


def test_crops_of_many_sizes_make_one_batch() -> None:
    crops = [torch.zeros(3, h, w, dtype=torch.uint8) for h, w in ((1, 1), (1, 300), (50, 20))]
    assert resize_crops(crops, 16, CPU).shape == (3, 3, 16, 16)
    assert resize_crops([], 16, CPU).shape == (0, 3, 16, 16)


def test_crops_of_mixed_sizes_are_each_as_alone_to_the_bit() -> None:
    rng = torch.Generator().manual_seed(0)
    sizes = [(20, 30), (31, 17), (20, 30), (40, 40), (31, 17), (20, 30)]
    crops = [torch.randint(0, 256, (3, *s), generator=rng, dtype=torch.uint8) for s in sizes]
    alone = torch.cat([resize_crops([crop], 32, CPU) for crop in crops])
    assert torch.equal(resize_crops(crops, 32, CPU), alone)
