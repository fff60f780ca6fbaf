import pytest
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import apply_rot_embed_cat

from clipself_d2.clip.towers.positions import all_turns, resize_positions, rotary_table, turn_pairs

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_resized_table_follows_the_reference(kind, load_golden):
    golden = load_golden(kind)
    name = "visual.pos_embed" if kind == "eva" else "visual.positional_embedding"
    table = golden.teacher[name].reshape(17, 96)
    expected = golden.outputs["teacher.pos_embed_10x10"].reshape(101, 96)
    torch.testing.assert_close(resize_positions(table, (4, 4), (10, 10)), expected, **TOLERANCE)


def test_native_grid_returns_the_table_itself():
    table = torch.randn(17, 8)
    assert resize_positions(table, (4, 4), (4, 4)) is table


def test_class_token_row_is_kept():
    table = torch.randn(17, 8)
    assert torch.equal(resize_positions(table, (4, 4), (2, 9))[0], table[0])


def test_rectangle_is_resized_by_each_axis_on_its_own():
    table = torch.randn(1 + 16, 8)
    grid = table[1:].T.reshape(1, 8, 4, 4)
    rows = F.interpolate(grid, (6, 4), mode="bicubic", align_corners=False)
    both = F.interpolate(rows, (6, 11), mode="bicubic", align_corners=False)
    got = resize_positions(table, (4, 4), (6, 11))[1:].T.reshape(1, 8, 6, 11)
    torch.testing.assert_close(got, both, **TOLERANCE)


def test_shrinking_is_not_antialiased():
    table = torch.randn(1 + 64, 8)
    grid = table[1:].T.reshape(1, 8, 8, 8)
    smooth = F.interpolate(grid, (3, 3), mode="bicubic", align_corners=False, antialias=True)
    got = resize_positions(table, (8, 8), (3, 3))[1:].T.reshape(1, 8, 3, 3)
    assert (got - smooth).abs().max() > 0.1


def test_table_learns_through_the_resizing():
    table = torch.randn(17, 8, requires_grad=True)
    resize_positions(table, (4, 4), (3, 5)).sum().backward()
    assert table.grad.abs().amax(1).min() > 0


def test_half_precision_table_keeps_its_type():
    assert resize_positions(torch.randn(17, 8).bfloat16(), (4, 4), (3, 5)).dtype == torch.bfloat16


def test_table_without_a_class_token():
    table = torch.randn(17, 8)
    got = resize_positions(table[1:], (4, 4), (3, 5), num_prefix=0)
    torch.testing.assert_close(got, resize_positions(table, (4, 4), (3, 5))[1:], **TOLERANCE)


@pytest.mark.parametrize(("indexing", "offset"), [("ij", 0.0), ("xy", 1.0)])
def test_rotary_angles_follow_the_formula_on_each_axis(indexing, offset):
    """Row angles in one half of the head, column angles in the other, each twice."""
    settings = {"head_dim": 32, "temperature": 1e4, "reference": (16, 16), "device": CPU}
    table = rotary_table((3, 7), offset=offset, indexing=indexing, **settings)
    frequency = 1e4 ** -(torch.arange(8) * 4 / 32)
    row = ((torch.arange(3) + offset) / 3 * 16)[:, None] * frequency
    column = ((torch.arange(7) + offset) / 7 * 16)[:, None] * frequency
    for got, function in zip(table.chunk(2, dim=-1), (torch.sin, torch.cos), strict=True):
        rows = function(row).repeat_interleave(2, dim=1)[:, None].expand(3, 7, 16)
        columns = function(column).repeat_interleave(2, dim=1)[None].expand(3, 7, 16)
        halves = (rows, columns) if indexing == "ij" else (columns, rows)
        torch.testing.assert_close(got, torch.cat(halves, dim=-1).flatten(0, 1), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_prefix", [0, 1])
def test_turned_pairs_are_those_of_timm_to_the_bit(dtype, num_prefix):
    table = rotary_table((3, 5), head_dim=16, temperature=1e4, reference=(4, 4), device=CPU)
    heads = torch.randn(2, 3, num_prefix + 15, 16).to(dtype).requires_grad_()
    turned = turn_pairs(heads, all_turns(table, num_prefix))
    before, patches = heads.split((num_prefix, 15), dim=2)
    expected = torch.cat([before, apply_rot_embed_cat(patches, table)], dim=2)
    assert torch.equal(turned, expected)
    assert turned.dtype == dtype
    weights = torch.randn(turned.shape).to(dtype)
    (mine,) = torch.autograd.grad((turned * weights).sum(), heads)
    (timms,) = torch.autograd.grad((expected * weights).sum(), heads)
    torch.testing.assert_close(mine, timms)
