from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clipself_d2.apps.benchmark.measure import BenchmarkOptions
from clipself_d2.apps.benchmark.steps import (
    NUM_SLOTS,
    PlainDistiller,
    _make_item,
    _pad_slots,
    build_detector,
    build_ours,
    build_plain,
    detector_step,
    watch_tower,
)
from clipself_d2.backbones.clip_vit import ClipViT

TINY = BenchmarkOptions(model="ViT-Ti-8-emoji", precision="fp32", num_crops=3, regions=(4, 4))
Detector = tuple[nn.Module, ClipViT]


@pytest.fixture(scope="module")
def frozen() -> Detector:
    return build_detector(TINY, False)


@pytest.fixture(scope="module")
def careless() -> Detector:
    return build_detector(TINY, True)


def test_plain_and_our_step_have_the_same_losses_while_training() -> None:
    ours, plain = build_ours(TINY, 96), build_plain(TINY, 96)
    losses = [(ours(), plain()) for _ in range(3)]
    for our_loss, plain_loss in losses:
        assert our_loss == pytest.approx(plain_loss, abs=2e-6)
    assert losses[0][0] > losses[1][0] > losses[2][0]


def test_unused_slots_are_zeros_and_used_ones_hold_the_item() -> None:
    tower = SimpleNamespace(pixel_mean=(1.0, 2.0, 3.0), pixel_std=(2.0, 2.0, 2.0))
    item = _make_item(32, 8, 3)
    image, slots, crops = _pad_slots(item, tower)
    assert slots.shape == (1, NUM_SLOTS, 5)
    assert crops.shape == (1, NUM_SLOTS, 3, 8, 8)
    assert slots[0, :, 4].tolist() == [1.0] * 3 + [0.0] * 17
    assert torch.equal(slots[0, :3, :4] * 32, item["boxes"])
    assert not crops[0, 3:].any()
    assert torch.equal(image[0, 1], (item["image"][1] - 2.0) / 2.0)


def test_regions_are_tiles_of_the_picture() -> None:
    boxes = _make_item(64, 8, 16)["boxes"]
    assert float(((boxes[:, 2:] - boxes[:, :2]).prod(dim=1)).sum()) == 64 * 64
    assert len({tuple(row) for row in boxes.tolist()}) == 16


def test_other_networks_are_refused() -> None:
    tower = SimpleNamespace(visual=nn.Linear(1, 1), name="EVA02-B-16")
    with pytest.raises(ValueError, match="EVA02-B-16 is another network; use --model"):
        PlainDistiller(tower)


@pytest.mark.parametrize("task", ["training", "inference"])
def test_a_frozen_tower_runs_once_without_a_graph_and_the_careless_one_twice_with_one(
    frozen: Detector, careless: Detector, task: str
) -> None:
    counts = []
    for detector, backbone in (frozen, careless):
        step = detector_step(detector, backbone, 64, task)
        with watch_tower(backbone) as watch:
            step()
        counts.append(watch)
    assert counts[0] == {"passes": 1}
    assert counts[1]["passes"] == 2
    assert counts[1]["bytes"] > 0
    assert all(parameter.grad is None for parameter in frozen[1].tower.parameters())


def test_both_variants_compute_the_same_features(frozen: Detector, careless: Detector) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    want, got = frozen[1](images), careless[1](images)
    assert want.keys() == got.keys()
    for name, feature in want.items():
        torch.testing.assert_close(got[name].detach(), feature)
        assert got[name].requires_grad
        assert not feature.requires_grad
