"""Windows, activation checkpointing and region tokens, for both kinds of tower."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.clip.towers.contract import ALL_BLOCKS
from clipself_d2.layers.region_pool import masked_attention

GOLDEN = Path(__file__).parents[2] / "golden" / "clip" / "region_tokens.npz"
TOLERANCE = {"rtol": 1e-6, "atol": 1e-5}
# A rectangle of 5 x 7 patches.
SIZE = (80, 112)


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, **TOLERANCE)


@pytest.fixture
def rectangle():
    return torch.randn((2, 3, *SIZE), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(
    "form", ["clipself", "attention", "declip_csa", "clearclip", "naclip", "denserc"]
)
def test_one_window_over_the_map_is_global_attention(tower, rectangle, form):
    expected = tower.forward_dense(rectangle, blocks=(0, 1, 2), form=form)
    # Every block but the first has a window.
    tower.set_attention(window_size=7, global_blocks=[0])
    got = tower.forward_dense(rectangle, blocks=(0, 1, 2), form=form)
    assert_close(got.embedding, expected.embedding)
    for block, wanted in zip(got.blocks, expected.blocks, strict=True):
        assert_close(block, wanted)


@torch.no_grad()
@pytest.mark.parametrize("window_size", [1, 2, 3])
def test_global_in_every_block_is_global_attention(tower, rectangle, window_size):
    expected = tower.forward_dense(rectangle).embedding
    tower.set_attention(window_size=window_size, global_blocks=[0, 1, 2])
    assert torch.equal(tower.forward_dense(rectangle).embedding, expected)


@torch.no_grad()
def test_windows_act_in_the_blocks_that_are_not_global(tower, rectangle):
    whole = tower.forward_dense(rectangle, blocks=(0, 1, 2))
    tower.set_attention(window_size=3, global_blocks=[0, 2])
    got = tower.forward_dense(rectangle, blocks=(0, 1, 2))
    assert torch.equal(got.blocks[0], whole.blocks[0])
    assert (got.blocks[1] - whole.blocks[1]).abs().max() > 1e-3
    tower.set_attention()
    assert torch.equal(tower.forward_dense(rectangle).embedding, whole.embedding)


@torch.no_grad()
def test_a_patch_reaches_its_window_and_the_class_token(tower, rectangle):
    tower.set_attention(window_size=3, global_blocks=[2])
    tokens, rotary = tower.embed(rectangle)
    changed = tokens.clone()
    changed[:, 1 + 4 * 7 + 6] += torch.randn(96)
    block = tower.block_modules[0]
    got, plain = (tower.run_window_block(block, t, rotary, (5, 7)) for t in (changed, tokens))
    touched = ((got - plain).abs().amax((0, 2)) > 1e-6).nonzero().flatten().tolist()
    # The last window of 5 x 7 has rows 3 and 4 and column 6.
    assert touched == [0, 1 + 3 * 7 + 6, 1 + 4 * 7 + 6]


@torch.no_grad()
def test_window_block_is_the_block_with_a_mask_and_the_rotation_of_the_whole_grid(tower, rectangle):
    tower.set_attention(window_size=3, global_blocks=[2])
    block = tower.block_modules[0]
    tokens, rotary = tower.embed(rectangle)
    window = torch.tensor([row // 3 * 10 + column // 3 for row in range(5) for column in range(7)])
    seen = torch.ones(36, 36, dtype=torch.bool)
    seen[1:, 1:] = window[:, None] == window[None]
    heads = tower.heads(block, tokens, rotary)
    mixed = F.scaled_dot_product_attention(*heads, attn_mask=seen)
    expected = tower.finish(block, tokens, mixed.transpose(1, 2).flatten(2))
    assert_close(tower.run_window_block(block, tokens, rotary, (5, 7)), expected)


@torch.no_grad()
def test_picture_embedding_stays_global(tower, rectangle):
    expected = tower.forward_image(rectangle)
    tower.set_attention(window_size=2)
    assert torch.equal(tower.forward_image(rectangle), expected)


def test_default_keeps_the_last_block_of_every_quarter_global(tower):
    tower.set_attention(window_size=4)
    assert tower.attention.window_size == 4
    assert tower.attention.global_blocks == (0, 1, 2)
    tower.set_attention(window_size=4, global_blocks=[1])
    assert [tower.attention.strategy(n) for n in range(3)] == ["window", "global", "window"]


def test_wrong_windows_name_their_keys(tower):
    with pytest.raises(ValueError, match=r"blocks 0 to 2, not \[3\] of global_blocks"):
        tower.set_attention(window_size=4, global_blocks=[0, 3])


def gradients(tower, images, blocks=(0, 2)):
    tower.zero_grad()
    features = tower.forward_dense(images, blocks=blocks)
    loss = features.embedding[:, 0].sum() + sum(block.square().mean() for block in features.blocks)
    loss.backward()
    return {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("window_size", [0, 2])
def test_checkpointing_gives_the_same_gradients(tower, rectangle, window_size, precision):
    tower.freeze(ALL_BLOCKS)
    tower.set_attention(window_size=window_size, global_blocks=[1] if window_size else [])
    tower.precision = precision
    expected = gradients(tower.train(), rectangle)
    tower.checkpointing = True
    got = gradients(tower, rectangle)
    assert set(got) == set(expected) == {n for n, p in tower.named_parameters() if p.requires_grad}
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_checkpointing_runs_blocks_again_in_the_backward_pass(tower, rectangle, monkeypatch):
    tower.freeze(3)
    calls = []
    plain = tower.feed_forward
    monkeypatch.setattr(tower, "feed_forward", lambda *args: calls.append(1) or plain(*args))
    for checkpointing, expected in ((False, 3), (True, 6)):
        calls.clear()
        tower.checkpointing = checkpointing
        gradients(tower, rectangle)
        assert len(calls) == expected
    with torch.no_grad():
        calls.clear()
        tower.forward_dense(rectangle)
    assert len(calls) == 3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "vit_quickgelu"])
def test_region_tokens_equal_the_reference(kind, load_golden, new_clip):
    golden = load_golden(kind)
    tower = new_clip(kind).tower
    tower.load_state_dict({n: v for n, v in golden.teacher.items() if n.startswith("visual.")})
    images = golden.inputs["img_big"]
    with np.load(GOLDEN) as file:
        expected = torch.tensor(file[kind])
    assert_close(masked_attention(tower, images, golden.boxes, normalize=False), expected)


@torch.no_grad()
def test_token_of_the_whole_picture_is_the_class_token(tower, rectangle):
    whole = [torch.ones(1, 5, 7, dtype=torch.bool)] * 2
    assert_close(tower.forward_regions(rectangle, whole), tower.forward_image(rectangle))


@torch.no_grad()
def test_regions_do_not_see_one_another_and_keep_their_order(tower, rectangle):
    generator = torch.Generator().manual_seed(2)
    masks = [torch.rand((count, 5, 7), generator=generator) > 0.5 for count in (3, 1)]
    together = tower.forward_regions(rectangle, masks)
    none = torch.zeros(0, 5, 7, dtype=torch.bool)
    alone = [tower.forward_regions(rectangle, [masks[0][i : i + 1], none]) for i in range(3)]
    alone.append(tower.forward_regions(rectangle, [none, masks[1]]))
    assert_close(together, torch.cat(alone))


@torch.no_grad()
def test_no_regions_give_no_rows(tower, rectangle):
    none = torch.zeros(0, 5, 7, dtype=torch.bool)
    assert tower.forward_regions(rectangle, [none, none]).shape == (0, 32)


def test_wrong_masks_are_named(tower, rectangle):
    mask = torch.ones(1, 5, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="masks for 1 images but 2"):
        tower.forward_regions(rectangle, [mask])
    with pytest.raises(ValueError, match=r"mask grid \(7, 5\) is not the tower's \(5, 7\)"):
        tower.forward_regions(rectangle, [mask, mask.transpose(1, 2)])


@torch.no_grad()
def test_windows_cover_padded_sizes(tower):
    tower.set_attention(window_size=2, global_blocks=[1])
    images = torch.randn(1, 3, 50, 90)
    padded = F.pad(images, (0, 6, 0, 14))
    assert_close(tower.forward_dense(images).embedding, tower.forward_dense(padded).embedding)
