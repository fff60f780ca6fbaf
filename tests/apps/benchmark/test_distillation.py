from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from torch import nn

from clipself_d2.apps.benchmark import distillation
from clipself_d2.apps.benchmark.distillation import (
    NUM_SLOTS,
    PublishedDistiller,
    build_ours,
    build_published,
    make_items,
    number_type,
    pad_slots,
    published_type,
)
from clipself_d2.apps.benchmark.measure import BenchmarkOptions
from clipself_d2.clip.towers.eva import EvaTower

TINY = BenchmarkOptions(precision="fp32", num_crops=3)
VIT = "ViT-Ti-8-emoji"


def test_published_and_our_step_have_the_same_losses_while_training() -> None:
    ours, published = build_ours(TINY, VIT, 96, 2, "off"), build_published(TINY, VIT, 96, 2)
    losses = [(float(ours()), float(published())) for _ in range(3)]
    for our_loss, published_loss in losses:
        assert our_loss == pytest.approx(published_loss, abs=2e-6)
    assert losses[0][0] > losses[1][0] > losses[2][0]


def small_eva(_name: str, *, precision: str) -> EvaTower:
    settings = {"image_size": 64, "pool": "token", "proj": ""}
    with torch.device("meta"):
        visual = TimmModel("eva02_tiny_patch14_224", 24, **settings)
    torch.manual_seed(0)
    visual.trunk = timm.create_model(
        "eva02_base_patch16_clip_224",
        **{"img_size": 64, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": 24},
    )
    pixels = {"pixel_mean": (127.0,) * 3, "pixel_std": (64.0,) * 3}
    return EvaTower(visual=visual.eval(), name="small EVA", precision=precision, **pixels)


def test_so_do_they_with_eva(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "load_tower", small_eva)
    ours, published = build_ours(TINY, "", 96, 1, "off"), build_published(TINY, "", 96, 1)
    for _ in range(3):
        assert float(ours()) == pytest.approx(float(published()), abs=2e-6)


def test_unused_slots_are_zeros_and_used_ones_hold_the_item() -> None:
    tower = SimpleNamespace(pixel_mean=(1.0, 2.0, 3.0), pixel_std=(2.0, 2.0, 2.0))
    items = make_items(2, 32, 8, 3)
    images, slots, crops = pad_slots(items, tower)
    assert slots.shape == (2, NUM_SLOTS, 5)
    assert crops.shape == (2, NUM_SLOTS, 3, 8, 8)
    assert slots[1, :, 4].tolist() == [1.0] * 3 + [0.0] * 17
    assert torch.equal(slots[0, :3, :4] * 32, items[0]["boxes"])
    assert not crops[:, 3:].any()
    assert torch.equal(images[1, 1], (items[1]["image"][1] - 2.0) / 2.0)


def test_regions_are_tiles_of_the_picture() -> None:
    boxes = make_items(1, 64, 8, 16)[0]["boxes"]
    assert float(((boxes[:, 2:] - boxes[:, :2]).prod(dim=1)).sum()) == 64 * 64
    assert len({tuple(row) for row in boxes.tolist()}) == 16


def test_other_networks_are_refused() -> None:
    tower = SimpleNamespace(visual=nn.Linear(1, 1), name="RN50")
    with pytest.raises(ValueError, match="RN50 is another network; use --model"):
        PublishedDistiller(tower, torch.float32)


def test_the_published_step_is_float16_on_a_gpu_and_in_our_type_on_a_cpu() -> None:
    assert published_type(replace(TINY, precision="bf16")) == torch.bfloat16
    assert number_type(TINY) == published_type(TINY) == torch.float32
    assert published_type(replace(TINY, device="cuda")) == torch.float16
