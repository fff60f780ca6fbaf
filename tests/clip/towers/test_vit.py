from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import QuickGELU, VisionTransformer

from clipself_d2.clip.towers.positions import resize_positions
from clipself_d2.clip.towers.vit import OpenClipViTTower

CATSEG = Path(__file__).parents[2] / "golden" / "catseg" / "clip_dense.npz"
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def make_tower(visual):
    return OpenClipViTTower(
        visual=visual, name="tiny", pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0)
    )


def make_visual(image_size=64, **changes):
    settings = {"patch_size": 16, "width": 64, "layers": 2, "heads": 2, "mlp_ratio": 4.0}
    visual = VisionTransformer(image_size=image_size, output_dim=24, **{**settings, **changes})
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return visual.eval()


def test_sizes_are_read_off_the_modules():
    tower = make_tower(make_visual())
    sizes = (tower.embed_dim, tower.width, tower.patch_size, tower.num_blocks, tower.image_size)
    assert sizes == (24, 64, 16, 2, 64)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_dense_map_equals_open_clip_built_for_that_size(grid):
    torch.manual_seed(0)
    size = (16 * grid[0], 16 * grid[1])
    square, rectangle = make_visual(), make_visual(image_size=size, output_tokens=True)
    state = square.state_dict()
    table = resize_positions(state["positional_embedding"], (4, 4), grid)
    rectangle.load_state_dict({**state, "positional_embedding": table})
    picture = torch.randn(2, 3, *size)
    pooled, tokens = rectangle(picture)
    tower = make_tower(square)
    torch.testing.assert_close(tower.forward_image(picture), pooled, **TOLERANCE)
    dense = tower.forward_dense(picture, form="attention").embedding
    unit = F.normalize(tokens @ rectangle.proj, dim=-1)
    expected = unit.transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(dense, expected, **TOLERANCE)


@torch.no_grad()
def test_blocks_equal_open_clips_intermediates(images):
    torch.manual_seed(0)
    visual = make_visual(layers=3)
    expected = visual.forward_intermediates(images, indices=[0, 1, 2])["image_intermediates"]
    features = make_tower(visual).forward_dense(images, blocks=(0, 1, 2), form="attention")
    for got, wanted in zip(features.blocks, expected, strict=True):
        torch.testing.assert_close(got, wanted, **TOLERANCE)


@torch.no_grad()
def test_layer_scale_is_kept_in_the_value_block():
    torch.manual_seed(0)
    visual = make_visual(ls_init_value=0.5)
    tower = make_tower(visual)
    tokens = torch.randn(1, 3, 64)
    block = tower.block_modules[-1]
    block.ls_1.gamma.zero_()
    block.ls_2.gamma.zero_()
    assert torch.equal(tower.finish(block, tokens, tower.value(block, tokens)), tokens)


def test_single_token_attention_equals_the_value_block():
    """With one token there is nobody else to attend to, so both variants are the same block."""
    torch.manual_seed(0)
    tower = make_tower(make_visual())
    tokens = torch.randn(5, 1, 64)
    for block in tower.block_modules:
        got, expected = (
            tower.finish(block, tokens, tower.value(block, tokens)),
            tower.run_block(block, tokens, None),
        )
        torch.testing.assert_close(got, expected, **TOLERANCE)


# CLIPA norms behind the average.
AVERAGING = [{"pool_type": "avg", "final_ln_after_pool": last} for last in (False, True)]


@torch.no_grad()
@pytest.mark.parametrize("changes", [*AVERAGING, {"final_ln_after_pool": True}])
def test_poolings_equal_open_clips(changes, images):
    torch.manual_seed(0)
    visual = make_visual(no_ln_pre=True, **changes)
    tower = make_tower(visual)
    torch.testing.assert_close(tower.forward_image(images), visual(images), **TOLERANCE)
    assert tower.reads_class_token == ("pool_type" not in changes)


@torch.no_grad()
@pytest.mark.parametrize("changes", AVERAGING)
def test_picture_of_one_patch_has_the_embedding_of_its_cell(changes):
    torch.manual_seed(0)
    tower = make_tower(make_visual(**changes))
    picture = torch.randn(2, 3, 16, 16)
    dense = tower.forward_dense(picture, form="attention").embedding
    expected = F.normalize(tower.forward_image(picture), dim=1)
    torch.testing.assert_close(dense[..., 0, 0], expected, **TOLERANCE)


def test_regions_of_an_averaging_tower_are_refused(images):
    tower = make_tower(make_visual(pool_type="avg"))
    with pytest.raises(ValueError, match="no token to copy"):
        tower.forward_regions(images, [torch.ones(1, 4, 4).bool()] * 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"attentional_pool": True},
        {"pool_type": "none"},
        {"block_type": "custom", "scale_attn": True},
    ],
)
def test_towers_of_another_build_are_refused(changes):
    with pytest.raises(ValueError, match="tiny"):
        make_tower(make_visual(**changes))


def test_only_query_and_key_rows_lack_a_gradient_in_the_fused_matrix():
    torch.manual_seed(0)
    clip = CLIP(
        24,
        {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        {"context_length": 8, "vocab_size": 10, "width": 32, "heads": 1, "layers": 1},
    )
    tower = make_tower(clip.visual)
    tower.freeze(1)
    dense = tower.forward_dense(torch.randn(1, 3, 32, 32)).embedding
    (dense * torch.randn_like(dense)).sum().backward()
    gradient = tower.block_modules[-1].attn.in_proj_weight.grad
    assert gradient[: 2 * 64].abs().max() == 0
    idle = {id(parameter): rows for parameter, rows in tower.idle_rows()}
    assert idle[id(tower.block_modules[-1].attn.in_proj_weight)] == slice(0, 2 * 64)
    assert gradient[2 * 64 :].abs().amax(1).min() > 0


@torch.no_grad()
def test_catseg_is_the_dense_map_of_the_published_cat_seg():
    with np.load(CATSEG) as arrays:
        golden = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    state = {key[6:]: value for key, value in golden.items() if key.startswith("param/")}
    apart = [key for key in state if key.endswith("q_proj_weight")]
    for key in apart:
        parts = [state.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        state[key.replace("q_proj_weight", "in_proj_weight")] = torch.cat(parts)
    visual = VisionTransformer(32, 8, 64, 3, 1, 4.0, output_dim=32, act_layer=QuickGELU)
    visual.load_state_dict(state)
    tower = make_tower(visual)
    for picture, name in (("image", "dense"), ("image_native", "dense_native")):
        found = tower.forward_dense(golden[picture], (0, 1), "catseg")
        raw = (found.embedding * found.lengths).flatten(2).transpose(1, 2)
        torch.testing.assert_close(raw, golden[name][:, 1:], **TOLERANCE)
    blocks = tower.forward_dense(golden["image"], (0, 1)).blocks
    for number, block in enumerate(blocks):
        tokens = block.flatten(2).permute(2, 0, 1)
        torch.testing.assert_close(tokens, golden[f"hook{number}"][1:], **TOLERANCE)
