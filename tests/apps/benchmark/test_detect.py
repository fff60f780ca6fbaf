from dataclasses import replace

import pytest
import torch
from torch import nn

from clipself_d2.apps.benchmark.detect import (
    benchmark_detector,
    build_detector,
    find_backbone,
    make_step,
    watch_tower,
)
from clipself_d2.apps.benchmark.measure import BenchmarkOptions

TINY = BenchmarkOptions(
    model="ViT-Ti-8-emoji",
    sizes=(64,),
    precision="fp32",
    repeats=1,
    regions=(4, 4),
    isolated=False,
)


@pytest.fixture(scope="module")
def frozen() -> nn.Module:
    return build_detector(TINY, False)


@pytest.fixture(scope="module")
def careless() -> nn.Module:
    return build_detector(TINY, True)


def test_a_frozen_tower_runs_once_and_leaves_no_graph(frozen: nn.Module) -> None:
    backbone = find_backbone(frozen)
    step = make_step(frozen, 64, "training")
    with watch_tower(backbone) as watch:
        step()
    assert (watch.passes, watch.saved_bytes) == (1, 0)
    assert all(parameter.grad is None for parameter in backbone.tower.parameters())
    with watch_tower(backbone) as watch:
        make_step(frozen, 64, "inference")()
    assert (watch.passes, watch.saved_bytes) == (1, 0)


@pytest.mark.parametrize("task", ["training", "inference"])
def test_the_careless_variant_runs_twice_with_a_graph(careless: nn.Module, task: str) -> None:
    step = make_step(careless, 64, task)
    with watch_tower(find_backbone(careless)) as watch:
        step()
    assert watch.passes == 2
    assert watch.saved_bytes > 0


def test_both_variants_compute_the_same_features(frozen: nn.Module, careless: nn.Module) -> None:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    want, got = find_backbone(frozen)(images), find_backbone(careless)(images)
    assert want.keys() == got.keys()
    for name, feature in want.items():
        torch.testing.assert_close(got[name].detach(), feature)
        assert got[name].requires_grad
        assert not feature.requires_grad


@pytest.mark.slow
def test_rows_tell_passes_and_ratios() -> None:
    rows = benchmark_detector(replace(TINY, sizes=(64, 96)))
    assert [(row["size"], row["task"]) for row in rows[::2]] == [
        (size, task) for size in (64, 96) for task in ("training", "inference")
    ]
    for careless_row, our_row in zip(rows[::2], rows[1::2], strict=True):
        assert careless_row["speed ratio"] == 1
        assert (careless_row["tower passes"], our_row["tower passes"]) == (2, 1)
        assert our_row["saved MiB"] == 0
