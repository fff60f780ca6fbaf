"""Windows against a mask over all tokens, and the plan of blocks."""

import pytest
import torch
import torch.nn.functional as F

from clipself_d2.clip.towers.attention import (
    AttentionPlan,
    Heads,
    global_attention,
    masked_attention,
    merge_heads,
    quarter_blocks,
    split_heads,
    window_attention,
)

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def make_heads(grid, num_prefix, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, num_prefix + grid[0] * grid[1], 8)
    return Heads(*(torch.randn(shape, generator=generator) for _ in range(3)))


def by_mask(heads, grid, window_size, num_prefix):
    """The same windows as one attention over all tokens with a mask."""
    rows = torch.arange(grid[0]) // window_size
    columns = torch.arange(grid[1]) // window_size
    window = (rows[:, None] * 1000 + columns[None]).flatten()
    total = num_prefix + len(window)
    seen = torch.ones(total, total, dtype=torch.bool)
    seen[num_prefix:, num_prefix:] = window[:, None] == window[None]
    return F.scaled_dot_product_attention(*heads, attn_mask=seen)


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (5, 7), (1, 9), (3, 2)])
@pytest.mark.parametrize("window_size", [1, 2, 3])
def test_windows_equal_one_attention_with_a_mask(grid, window_size, num_prefix):
    heads = make_heads(grid, num_prefix)
    got = window_attention(heads, grid=grid, window_size=window_size, num_prefix=num_prefix)
    torch.testing.assert_close(got, by_mask(heads, grid, window_size, num_prefix), **TOLERANCE)


@pytest.mark.parametrize("num_prefix", [0, 1])
@pytest.mark.parametrize(("grid", "window_size"), [((4, 4), 4), ((3, 5), 5), ((2, 6), 50)])
def test_one_window_over_the_grid_is_global_attention(grid, window_size, num_prefix):
    heads = make_heads(grid, num_prefix)
    got = window_attention(heads, grid=grid, window_size=window_size, num_prefix=num_prefix)
    torch.testing.assert_close(got, global_attention(heads), **TOLERANCE)


def test_class_token_sees_every_patch_and_every_patch_sees_it():
    heads = make_heads((4, 4), 1)
    output = window_attention(heads, grid=(4, 4), window_size=2, num_prefix=1)
    for token in (0, 6):
        value = heads.value.clone()
        value[:, :, token] += 1.0
        changed = window_attention(
            heads._replace(value=value), grid=(4, 4), window_size=2, num_prefix=1
        )
        touched = (changed - output).abs().amax((0, 1, 3)) > 1e-6
        expected = [*range(17)] if token == 0 else [0, *window_of(token)]
        assert touched.nonzero().flatten().tolist() == expected


def window_of(token):
    """Tokens of the 2 x 2 window of a patch token on the 4 x 4 grid, class token first."""
    row, column = divmod(token - 1, 4)
    top, left = row // 2 * 2, column // 2 * 2
    return [1 + (top + i) * 4 + left + j for i in (0, 1) for j in (0, 1)]


def test_gradients_of_padded_windows_are_finite_and_equal_the_masked_ones():
    heads = make_heads((5, 3), 1)
    gradients = []
    for function in (
        lambda h: window_attention(h, grid=(5, 3), window_size=2, num_prefix=1),
        lambda h: by_mask(h, (5, 3), 2, 1),
    ):
        leaves = Heads(*(part.clone().requires_grad_() for part in heads))
        function(leaves).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_masked_queries_see_what_the_mask_says():
    heads = make_heads((2, 2), 1)
    query = torch.randn(2, 3, 2, 8)
    seen = torch.zeros(2, 1, 2, 5, dtype=torch.bool)
    seen[:, :, 0, 3] = True
    seen[:, :, 1] = True
    got = masked_attention(query, heads, seen)
    torch.testing.assert_close(got[:, :, 0], heads.value[:, :, 3], **TOLERANCE)
    whole = F.scaled_dot_product_attention(query[:, :, 1:], heads.key, heads.value)
    torch.testing.assert_close(got[:, :, 1:], whole, **TOLERANCE)


def test_heads_are_cut_and_merged():
    tokens = torch.randn(2, 5, 12)
    heads = split_heads(tokens, 3)
    assert heads.shape == (2, 3, 5, 4)
    assert torch.equal(heads[:, 1], tokens[..., 4:8])
    assert torch.equal(merge_heads(heads), tokens)


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (2, (0, 1)), (1, (0,)), (6, (0, 2, 3, 5))],
)
def test_last_block_of_every_quarter(num_blocks, expected):
    assert quarter_blocks(num_blocks) == expected


def test_plan_names_the_attention_of_each_block():
    plan = AttentionPlan(window_size=4, global_blocks=(1, 3))
    assert [plan.strategy(n) for n in range(4)] == ["window", "global", "window", "global"]
    assert {AttentionPlan().strategy(n) for n in range(4)} == {"global"}
