from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clipself_d2.apps.benchmark.distill import (
    NUM_SLOTS,
    PlainTower,
    benchmark_distill,
    build_ours,
    build_plain,
    make_item,
    pad_slots,
)
from clipself_d2.apps.benchmark.measure import BenchmarkOptions

TINY = BenchmarkOptions(
    model="ViT-Ti-8-emoji",
    sizes=(96,),
    precision="fp32",
    repeats=1,
    num_crops=3,
    isolated=False,
)


def test_plain_and_our_step_have_the_same_losses_while_training() -> None:
    ours, plain = build_ours(TINY, 96), build_plain(TINY, 96)
    losses = [(ours(), plain()) for _ in range(3)]
    for our_loss, plain_loss in losses:
        assert our_loss == pytest.approx(plain_loss, abs=2e-6)
    assert losses[0][0] > losses[1][0] > losses[2][0]


def test_unused_slots_are_zeros_and_used_ones_hold_the_item() -> None:
    tower = SimpleNamespace(pixel_mean=(1.0, 2.0, 3.0), pixel_std=(2.0, 2.0, 2.0))
    item = make_item(32, 8, 3)
    image, slots, crops = pad_slots(item, tower)
    assert slots.shape == (1, NUM_SLOTS, 5)
    assert crops.shape == (1, NUM_SLOTS, 3, 8, 8)
    assert slots[0, :, 4].tolist() == [1.0] * 3 + [0.0] * 17
    assert torch.equal(slots[0, :3, :4] * 32, item["boxes"])
    assert not crops[0, 3:].any()
    assert torch.equal(image[0, 1], (item["image"][1] - 2.0) / 2.0)


def test_regions_are_tiles_of_the_picture() -> None:
    boxes = make_item(64, 8, 16)["boxes"]
    assert float(((boxes[:, 2:] - boxes[:, :2]).prod(dim=1)).sum()) == 64 * 64
    assert len({tuple(row) for row in boxes.tolist()}) == 16
    with pytest.raises(ValueError, match="1 to 16 crops, not 17"):
        make_item(64, 8, 17)


def test_rows_compare_with_the_plain_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipself_d2.apps.benchmark.measure._PEAK_SIDE", {"cpu": 64})
    rows = benchmark_distill(TINY)
    assert [row["variant"] for row in rows] == ["plain", "ours", "ours, crops resized in the step"]
    assert rows[0]["speed ratio"] == rows[0]["step ratio"] == 1
    for row in rows:
        assert set(row) == {
            *("size", "variant", "type", "images/s", "speed ratio", "peak MiB", "peak ratio"),
            *("step MiB", "step ratio", "GFLOP", "GFLOP/s", "share of product peak"),
        }
    # The last block's attention that is thrown away costs products.
    assert rows[0]["GFLOP"] > rows[1]["GFLOP"] > 0


def test_other_networks_are_refused() -> None:
    tower = SimpleNamespace(visual=nn.Linear(1, 1), name="EVA02-B-16", patch_size=16)
    with pytest.raises(ValueError, match="EVA02-B-16 is another network; use --model"):
        PlainTower(tower)
