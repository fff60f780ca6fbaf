"""ConvNeXt: the projected feature map at a small size, against timm's own passes."""

from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers import Mlp
from torch import nn

from clipself_d2.clip.towers.contract import ALL_BLOCKS
from clipself_d2.clip.towers.convnext import ConvNeXtTower

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
HEADS = {"linear": lambda: nn.Linear(32, 24, bias=False), "mlp": lambda: Mlp(32, 48, 24)}


def make_visual(head="linear", **changes):
    """What open_clip builds for convnext_base (linear) and convnext_large_d (mlp)."""
    with torch.device("meta"):
        visual = TimmModel("convnext_atto", 24, image_size=64, pool="", proj="linear")
    settings = {"depths": (1, 1, 1, 3), "dims": (8, 8, 16, 32), "num_classes": 0}
    visual.trunk = timm.create_model("convnext_atto", **{**settings, **changes})
    visual.head = nn.Sequential(HEADS[head]())
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return visual.eval()


def wrap(visual):
    return ConvNeXtTower(
        visual=visual, name="tiny", pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0)
    )


@cache
def cached_visual(head):
    torch.manual_seed(0)
    return make_visual(head)


@pytest.fixture(params=HEADS)
def tower(request):
    return wrap(cached_visual(request.param))


@pytest.fixture
def picture():
    return torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(1))


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_sizes_are_read_off_the_modules(tower):
    sizes = (tower.embed_dim, tower.width, tower.patch_size, tower.num_blocks, tower.image_size)
    assert sizes == (24, 32, 32, 3, 64)


@torch.no_grad()
def test_picture_embedding_is_open_clips(tower, picture):
    assert_close(tower.forward_image(picture), tower.visual(picture))


@torch.no_grad()
def test_picture_of_one_cell_has_the_embedding_of_its_cell(tower):
    """The average of one cell is the cell, so the pooled head and the dense head agree."""
    picture = torch.randn(3, 3, 32, 32)
    dense = tower.forward_dense(picture).embedding
    assert_close(dense[..., 0, 0], F.normalize(tower.forward_image(picture), dim=1))


@torch.no_grad()
def test_every_cell_is_the_head_of_its_column(tower, picture):
    features = tower.visual.trunk.forward_features(picture)
    dense = tower.forward_dense(picture).embedding
    assert dense.shape == (2, 24, 2, 3)
    for row in range(2):
        for column in range(3):
            alone = features[:, :, row : row + 1, column : column + 1]
            expected = tower.visual.head(tower.visual.trunk.forward_head(alone))
            assert_close(dense[:, :, row, column], F.normalize(expected, dim=1))


@torch.no_grad()
def test_constant_map_has_the_embedding_of_the_picture_in_every_cell(tower):
    features = torch.randn(2, 32, 1, 1).expand(-1, -1, 3, 4)
    cells = tower._project(features)
    expected = tower.visual.head(tower.visual.trunk.forward_head(features))
    assert_close(cells, expected[:, :, None, None].expand(-1, -1, 3, 4))


@torch.no_grad()
def test_norm_before_the_pool_is_applied_once(picture):
    tower = wrap(make_visual(head_norm_first=True))
    small = picture[..., :32, :32]
    assert_close(tower.forward_image(picture), tower.visual(picture))
    dense = tower.forward_dense(small).embedding
    assert_close(dense[..., 0, 0], F.normalize(tower.forward_image(small), dim=1))


@torch.no_grad()
def test_blocks_are_those_of_the_last_stage(tower, picture):
    features = tower.forward_dense(picture, blocks=(2, 0))
    expected = tower.visual.trunk.stages(tower.visual.trunk.stem(picture))
    assert_close(features.blocks[0], expected)
    again = tower.block_modules[2](tower.block_modules[1](features.blocks[1]))
    assert_close(again, expected)


@torch.no_grad()
def test_both_forms_of_the_last_block_are_one(tower, picture):
    value = tower.forward_dense(picture, form="clipself").embedding
    assert torch.equal(tower.forward_dense(picture, form="attention").embedding, value)
    with pytest.raises(ValueError, match="declip_csa changes the attention .* has not"):
        tower.set_dense_form("declip_csa")
    with pytest.raises(ValueError, match=r"blocks 0 to 2, not \[3\]"):
        tower.forward_dense(picture, blocks=(3,))


@torch.no_grad()
def test_sizes_between_cells_are_zero_padded(tower):
    picture = torch.randn(1, 3, 50, 70)
    padded = F.pad(picture, (0, 26, 0, 14))
    assert_close(tower.forward_dense(picture).embedding, tower.forward_dense(padded).embedding)
    assert_close(tower.forward_image(picture), tower.forward_image(padded))


@pytest.mark.parametrize("num_blocks", [1, ALL_BLOCKS])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trainable_parameter_gets_a_gradient(num_blocks, checkpointing, check_gradients):
    torch.manual_seed(0)
    tower = wrap(make_visual())
    tower.freeze(num_blocks)
    tower.checkpointing = checkpointing
    check_gradients(tower.train(), 64, 96)
    frozen = {name for name, p in tower.named_parameters() if not p.requires_grad}
    assert "visual.head.0.weight" in frozen
    assert num_blocks != ALL_BLOCKS or len(frozen) == 1


def test_checkpointing_gives_the_same_gradients(picture):
    torch.manual_seed(0)
    tower = wrap(make_visual())
    gradients = []
    for checkpointing in (False, True):
        tower.zero_grad()
        tower.checkpointing = checkpointing
        tower.forward_dense(picture).embedding[:, 0].sum().backward()
        gradients.append({n: p.grad.clone() for n, p in tower.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_windows_are_refused(tower):
    tower.set_attention()
    for setting in ({"window_size": 4}, {"global_blocks": [0]}):
        with pytest.raises(ValueError, match="leave window_size at 0"):
            tower.set_attention(**setting)


@pytest.mark.parametrize("changes", [{"global_pool": "max"}, {"global_pool": ""}])
def test_other_pools_are_refused(changes):
    with pytest.raises(ValueError, match="does not average its last map"):
        wrap(make_visual(**changes))
