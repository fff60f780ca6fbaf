"""Stochastic depth: its schedule, its mean, and that evaluation knows nothing of it."""

import copy

import pytest
import torch
from timm.layers import DropPath

from clipself_d2.clip.model import load_tower
from clipself_d2.clip.towers.drop_path import set_drop_path


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return load_tower("ViT-Ti-8-emoji", None)


def rates(tower) -> list[float]:
    return [getattr(block.ls_1, "drop_prob", 0.0) for block in tower.block_modules]


def test_probability_grows_linearly_and_frozen_blocks_have_none(tower):
    set_drop_path(tower, 0.5)
    assert rates(tower) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    set_drop_path(tower, 0.5, num_blocks=2)
    assert rates(tower) == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.4, 0.5])
    set_drop_path(tower, 0.0)
    assert not any(isinstance(module, DropPath) for module in tower.modules())


def test_names_of_the_weights_stay(tower):
    before = list(tower.state_dict())
    set_drop_path(tower, 0.5)
    assert list(tower.state_dict()) == before


def test_evaluation_is_untouched_and_training_is_not(tower):
    images = torch.randn(2, 3, 32, 32)
    plain = tower.eval().forward_dense(images).embedding
    set_drop_path(tower, 0.5)
    torch.testing.assert_close(tower.eval().forward_dense(images).embedding, plain, rtol=0, atol=0)
    trained = tower.train().forward_dense(images).embedding
    assert (trained - plain).abs().max() > 1e-3


def test_an_image_keeps_or_loses_a_whole_branch(tower):
    set_drop_path(tower, 0.5)
    branch = tower.block_modules[5].ls_2.train()
    torch.manual_seed(0)
    kept = branch(torch.ones(2000, 3, 4))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.amin(dim=(1, 2)), kept.amax(dim=(1, 2)))
    # The mean over many images is the branch itself.
    assert kept.mean() == pytest.approx(1.0, abs=0.1)


def test_timm_blocks_have_it_on_both_branches(new_clip):
    tower = copy.deepcopy(new_clip("eva").tower)
    set_drop_path(tower, 0.3)
    block = tower.block_modules[-1]
    assert block.drop_path1.drop_prob == block.drop_path2.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_what_is_no_probability_is_refused(tower, rate):
    with pytest.raises(ValueError, match="drop path"):
        set_drop_path(tower, rate)


def test_layer_scales_of_open_clip_are_refused(tower):
    tower.block_modules[5].ls_1 = torch.nn.Linear(2, 2)
    set_drop_path(tower, 0.0)
    with pytest.raises(ValueError, match="layer scales"):
        set_drop_path(tower, 0.1)
