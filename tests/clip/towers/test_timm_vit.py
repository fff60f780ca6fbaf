"""SigLIP, ViTamin, MobileCLIP and averaging ViTs at small sizes, against timm's own passes."""

from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from torch import nn

from clipself_d2.clip.towers.contract import ALL_BLOCKS
from clipself_d2.clip.towers.positions import resize_positions
from clipself_d2.clip.towers.timm_vit import TimmViTTower

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# Behind a convolutional stem the width is the stem's.
THIN = {"depth": 2, "mlp_ratio": 0.25}
# open_clip's name of each trunk, how its size is cut, and whether a matrix follows the trunk.
FAMILIES = {
    "siglip": ("vit_base_patch16_siglip_224", {**SMALL, "num_classes": 0}, False),
    "gap": ("vit_medium_patch16_gap_256", {**SMALL, "num_classes": 0}, True),
    "vitamin": ("vitamin_small_224", {**THIN, "num_classes": 0}, True),
    "mobile": ("vit_base_mci_224", {**THIN, "num_classes": 24, "global_pool": "token"}, False),
    "clip": (
        "vit_base_patch16_clip_224",
        {**SMALL, "num_classes": 24, "global_pool": "token"},
        False,
    ),
}
# Towers without a class token, whose pool is defined for a single patch.
PATCHES_ALONE = ("siglip", "gap", "vitamin")


def make_visual(family, **changes):
    """What open_clip builds for a family, at a native size of 64 px."""
    name, settings, projected = FAMILIES[family]
    with torch.device("meta"):
        visual = TimmModel("vit_tiny_patch16_224", 24, image_size=64, pool="token", proj="")
    visual.trunk = timm.create_model(name, **{"img_size": 64, **settings, **changes})
    if projected:
        visual.head = nn.Sequential(nn.Linear(visual.trunk.embed_dim, 24, bias=False))
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return visual.eval()


def wrap(visual):
    return TimmViTTower(
        visual=visual, name="tiny", pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0)
    )


@cache
def cached_visual(family):
    torch.manual_seed(0)
    return make_visual(family)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_sizes_are_read_off_the_modules(family):
    tower = wrap(cached_visual(family))
    width = {"vitamin": 384, "mobile": 768}.get(family, 32)
    sizes = (tower.embed_dim, tower.width, tower.patch_size, tower.num_blocks, tower.image_size)
    assert sizes == (32 if family == "siglip" else 24, width, 16, 2, 64)
    assert tower.num_prefix == (0 if family in PATCHES_ALONE else 1)


@torch.no_grad()
def test_native_passes_equal_timms(family, images):
    visual = cached_visual(family)
    tower, trunk = wrap(visual), visual.trunk
    assert_close(tower.forward_image(images), visual(images))
    blocks = trunk.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    dense = tower.forward_dense(images, blocks=(0, 1), form="attention")
    for got, expected in zip(dense.blocks, blocks, strict=True):
        assert_close(got, expected)
    tokens = tower.project(blocks[1].flatten(2).transpose(1, 2))
    assert_close(dense.embedding.flatten(2).transpose(1, 2), F.normalize(tokens, dim=-1))


@torch.no_grad()
def test_rectangle_equals_timm_built_for_that_rectangle(family):
    visual = cached_visual(family)
    tower = wrap(visual)
    rectangle = make_visual(family, img_size=(48, 80))
    state = visual.state_dict()
    table = resize_positions(
        state["trunk.pos_embed"][0], (4, 4), (3, 5), num_prefix=tower.num_placed
    )
    rectangle.load_state_dict({**state, "trunk.pos_embed": table[None]})
    picture = torch.randn(2, 3, 48, 80)
    assert_close(tower.forward_image(picture), rectangle(picture))
    assert tower.forward_dense(picture).embedding.shape[2:] == (3, 5)


@torch.no_grad()
@pytest.mark.parametrize("family", PATCHES_ALONE)
def test_picture_of_one_patch_has_the_embedding_of_its_cell(family):
    """The dense path of an averaging or attention-pooling tower is its pool over one token."""
    tower = wrap(cached_visual(family))
    picture = torch.randn(3, 3, 16, 16)
    expected = F.normalize(tower.forward_image(picture), dim=1)
    for form in ("clipself", "attention"):
        dense = tower.forward_dense(picture, form=form).embedding
        assert_close(dense[..., 0, 0], expected)


@torch.no_grad()
@pytest.mark.parametrize("family", PATCHES_ALONE)
def test_cell_is_the_pool_over_its_token_alone(family):
    tower = wrap(cached_visual(family))
    tokens = torch.randn(2, 5, tower.width)
    alone = [tower.pool(tokens[:, i : i + 1]) for i in range(5)]
    assert_close(tower.project(tokens), torch.stack(alone, dim=1))


@torch.no_grad()
def test_average_of_the_cells_is_the_picture_where_the_norm_comes_first(images):
    tower = wrap(cached_visual("gap"))
    tokens, rotary = tower.embed(images)
    for block in tower.block_modules:
        tokens = tower.run_block(block, tokens, rotary)
    assert_close(tower.project(tokens).mean(dim=1), tower.forward_image(images))


def test_single_token_attention_equals_the_value_block(family):
    tower = wrap(cached_visual(family))
    tokens = torch.randn(5, 1, tower.width)
    for block in tower.block_modules:
        assert_close(
            tower.finish(block, tokens, tower.value(block, tokens)),
            tower.run_block(block, tokens, None),
        )


@torch.no_grad()
def test_layer_scale_is_kept_in_the_value_block():
    tower = wrap(make_visual("gap"))
    block = tower.block_modules[-1]
    block.ls1.gamma.zero_()
    block.ls2.gamma.zero_()
    tokens = torch.randn(1, 3, 32)
    assert torch.equal(tower.finish(block, tokens, tower.value(block, tokens)), tokens)


def test_every_trainable_parameter_gets_a_gradient(family, check_gradients):
    torch.manual_seed(0)
    tower = wrap(make_visual(family)).train()
    tower.freeze(ALL_BLOCKS)
    check_gradients(tower, 48, 80)
    frozen = [name for name, p in tower.named_parameters() if not p.requires_grad]
    assert all("attn_pool." in name or "head." in name for name in frozen)
    assert frozen


def test_batch_norms_of_a_stem_keep_their_statistics():
    tower = wrap(make_visual("mobile"))
    before = {n: b.clone() for n, b in tower.named_buffers() if "running" in n}
    assert before
    tower.train().forward_dense(torch.randn(2, 3, 32, 32))
    assert tower.training
    assert tower.block_modules[0].training
    after = dict(tower.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_stochastic_depth_acts_in_training_alone(images):
    tower = wrap(make_visual("gap", drop_path_rate=0.9))
    evaluated = tower.forward_dense(images).embedding
    torch.testing.assert_close(tower.forward_dense(images).embedding, evaluated)
    assert (tower.train().forward_dense(images).embedding - evaluated).abs().max() > 1e-3


@torch.no_grad()
def test_patch_that_does_not_divide_the_native_size_keeps_its_grid():
    """SigLIP's 384 px with a patch of 14: 27 patches, and 6 px that its stem drops."""
    tower = wrap(make_visual("siglip", img_size=60, patch_size=14))
    assert (tower.patch_size, tower.native, tower.image_size) == (14, (4, 4), 56)
    picture = torch.randn(1, 3, 60, 60)
    assert_close(tower.forward_image(picture[..., :56, :56]), tower.visual(picture))


@torch.no_grad()
def test_tower_without_a_position_table_has_none(images):
    visual = make_visual("gap", pos_embed="none")
    assert visual.trunk.pos_embed is None
    assert_close(wrap(visual).forward_image(images), visual(images))


def test_regions_need_a_class_token(images):
    with pytest.raises(ValueError, match="no token to copy"):
        wrap(cached_visual("siglip")).forward_regions(images, [torch.ones(1, 4, 4).bool()] * 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reg_tokens": 2, "class_token": True}, "register tokens"),
        ({"global_pool": "max", "class_token": False}, "pools by 'max'"),
        ({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, "ParallelScaling"),
    ],
)
def test_trunks_of_another_build_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"tiny .*{message}"):
        wrap(make_visual("gap", **changes))
