import pytest
import torch
from torch import nn

from clipself_d2.apps.benchmark.measure import BenchmarkOptions
from clipself_d2.apps.benchmark.steps import (
    build_detector,
    detector_step,
    watch_tower,
)
from clipself_d2.backbones.clip_vit import ClipViT

TINY = BenchmarkOptions(model="ViT-Ti-8-emoji", precision="fp32", regions=(4, 4))
Detector = tuple[nn.Module, ClipViT]


@pytest.fixture(scope="module")
def frozen() -> Detector:
    return build_detector(TINY, False)


@pytest.fixture(scope="module")
def careless() -> Detector:
    return build_detector(TINY, True)


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
