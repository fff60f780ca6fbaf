"""Small distillers and batches for them."""

import copy

import pytest
import torch

from clipself_d2.clip import load_tower
from clipself_d2.distill import CLIPSelfDistiller, RegionTextDistiller

NAME = "ViT-Ti-8-emoji"


def parts(**overrides: object) -> dict[str, object]:
    torch.manual_seed(0)
    teacher = load_tower(NAME)
    return {
        "student": copy.deepcopy(teacher),
        "teacher": teacher,
        "pixel_mean": teacher.pixel_mean,
        "pixel_std": teacher.pixel_std,
        "trainable_blocks": 6,
        "train_embedding": True,
        **overrides,
    }


@pytest.fixture
def make_clipself():
    """Function from constructor arguments to a CLIPSelfDistiller with random weights."""
    return lambda **overrides: CLIPSelfDistiller(**parts(**overrides))


@pytest.fixture
def make_region_text():
    """Function from constructor arguments to a RegionTextDistiller of 10 classes."""

    def make(**overrides: object) -> RegionTextDistiller:
        text = torch.randn(10, 128, generator=torch.Generator().manual_seed(3))
        return RegionTextDistiller(**parts(**{"text_KD": text, "scale": 20.0, **overrides}))

    return make


@pytest.fixture
def make_item():
    """Function from a seed to an item with regions, crops and classes."""

    def make(
        seed: int, regions: int = 3, size: tuple[int, int] = (48, 64)
    ) -> dict[str, object]:
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(regions, 2, generator=generator) * 20
        return {
            "image": torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8),
            "boxes": torch.cat([corner, corner + 20], dim=1),
            "crops": torch.randint(0, 255, (regions, 3, 64, 64), generator=generator).byte(),
            "whole": torch.randint(0, 255, (1, 3, 64, 64), generator=generator).byte(),
            "region_classes": torch.randint(0, 10, (regions,), generator=generator),
        }

    return make
