import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel

from clipself_d2.clip.towers.contract import ALL_BLOCKS
from clipself_d2.clip.towers.eva import EvaTower
from clipself_d2.clip.towers.positions import resize_positions

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def make_tower(visual):
    return EvaTower(
        visual=visual, name="tiny", pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0)
    )


def make_visual(name="eva02_base_patch16_clip_224", **changes):
    settings = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 24}
    with torch.device("meta"):
        visual = TimmModel("eva02_tiny_patch14_224", 24, image_size=64, pool="token", proj="")
    visual.trunk = timm.create_model(name, **{**settings, "global_pool": "token", **changes})
    with torch.no_grad():
        # timm's start values are so small that rotary positions would hide in rounding.
        for parameter in visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return visual.eval()


def test_sizes_are_read_off_the_modules():
    tower = make_tower(make_visual())
    sizes = (tower.embed_dim, tower.width, tower.patch_size, tower.num_blocks, tower.image_size)
    assert sizes == (24, 64, 16, 2, 64)


@torch.no_grad()
def test_blocks_equal_timms_intermediates(images):
    torch.manual_seed(0)
    visual = make_visual(depth=3)
    expected = visual.trunk.forward_intermediates(
        images, indices=[0, 1, 2], intermediates_only=True
    )
    features = make_tower(visual).forward_dense(images, blocks=(0, 1, 2), form="attention")
    for got, wanted in zip(features.blocks, expected, strict=True):
        torch.testing.assert_close(got, wanted, **TOLERANCE)


@torch.no_grad()
def test_rotary_table_follows_the_reference(load_golden):
    golden = load_golden("eva")
    tower = make_tower(make_visual(embed_dim=96, num_heads=3))
    sin, cos = tower.rotary((10, 10), torch.device("cpu")).chunk(2, dim=-1)
    torch.testing.assert_close(cos, golden.outputs["teacher.rope_cos_10x10"], **TOLERANCE)
    torch.testing.assert_close(sin, golden.outputs["teacher.rope_sin_10x10"], **TOLERANCE)


@torch.no_grad()
def test_rotary_positions_matter(images):
    torch.manual_seed(0)
    visual = make_visual()
    with_rotary = make_tower(visual).forward_image(images)
    visual.trunk.rope = None
    assert not torch.allclose(make_tower(visual).forward_image(images), with_rotary, atol=1e-3)


@torch.no_grad()
def test_layer_scale_is_kept_in_the_value_block():
    torch.manual_seed(0)
    tower = make_tower(make_visual(init_values=0.5))
    tokens = torch.randn(1, 3, 64)
    block = tower.block_modules[-1]
    block.gamma_1.zero_()
    block.gamma_2.zero_()
    assert torch.equal(tower.finish(block, tokens, tower.value(block, tokens)), tokens)


# The builds of EVA02-B, of EVA01-g (fused matrix), EVA02-E (norms behind the halves) and PE-Core,
# where columns turn before rows and positions begin at 1; its largest has no class token.
SMALL_PE = {"ref_feat_shape": (4, 4), "attn_pool_num_heads": 2, "global_pool": "map"}
BUILDS = {
    "eva02_b": ("eva02_base_patch16_clip_224", {}),
    "eva01": ("eva_giant_patch14_224", {"patch_size": 16}),
    "eva02_e": ("eva02_enormous_patch14_clip_224", {"patch_size": 16}),
    "pe": ("vit_pe_core_base_patch16_224", SMALL_PE),
    "pe_g": ("vit_pe_core_gigantic_patch14_448", {"patch_size": 16, **SMALL_PE}),
}


@torch.no_grad()
@pytest.mark.parametrize("build", BUILDS)
def test_every_build_equals_timm_at_native_size_and_on_rectangles(build, images):
    torch.manual_seed(0)
    name, changes = BUILDS[build]
    square, rectangle = (
        make_visual(name, **changes),
        make_visual(name, img_size=(48, 80), **changes),
    )
    tower, state = make_tower(square), square.state_dict()
    table = resize_positions(
        state["trunk.pos_embed"][0], (4, 4), (3, 5), num_prefix=tower.num_prefix
    )
    rectangle.load_state_dict({**state, "trunk.pos_embed": table[None]})
    for visual, picture in ((square, images), (rectangle, torch.randn(2, 3, 48, 80))):
        torch.testing.assert_close(tower.forward_image(picture), visual(picture), **TOLERANCE)
        features = visual.trunk.forward_features(picture)[:, tower.num_prefix :]
        cells = range(features.shape[1])
        alone = [visual.trunk.forward_head(features[:, i : i + 1]) for i in cells]
        dense = tower.forward_dense(picture, form="attention").embedding.flatten(2)
        for cell, expected in enumerate(alone):
            unit = F.normalize(expected, dim=1)
            torch.testing.assert_close(dense[..., cell], unit, **TOLERANCE)


@pytest.mark.parametrize("build", BUILDS)
def test_value_block_and_gradients_of_every_build(build, check_gradients):
    """With one token there is nobody else to attend to, so both variants are the same block."""
    torch.manual_seed(0)
    name, changes = BUILDS[build]
    tower = make_tower(make_visual(name, **changes))
    tokens = torch.randn(5, 1, 64)
    for block in tower.block_modules:
        got, expected = (
            tower.finish(block, tokens, tower.value(block, tokens)),
            tower.run_block(block, tokens, None),
        )
        torch.testing.assert_close(got, expected, **TOLERANCE)
    tower.freeze(ALL_BLOCKS)
    check_gradients(tower, 48, 80)


@torch.no_grad()
def test_rotary_positions_alone_are_enough(images):
    torch.manual_seed(0)
    visual = make_visual(use_abs_pos_emb=False)
    expected = visual(images)
    torch.testing.assert_close(make_tower(visual).forward_image(images), expected, **TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"global_pool": "max"},
        {"num_reg_tokens": 2},
        {"rope_type": "mixed"},
        {"rope_rotate_half": True},
    ],
)
def test_trunks_of_another_build_are_refused(changes):
    with pytest.raises(ValueError, match="tiny"):
        make_tower(make_visual(**changes))
