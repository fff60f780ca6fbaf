"""Windows of any grid: what a cell sees."""

import pytest
import torch

from clipself_d2.segmentation.spatial import SpatialAggregation


def seen(grid: tuple[int, int], cell: tuple[int, int], window: int) -> torch.Tensor:
    """Which cells of the input change the output at a cell."""
    torch.manual_seed(0)
    module = SpatialAggregation(dim=8, guide_dim=4, num_heads=2, window_size=window).double()
    # Only the block without a shift, whose windows are known.
    module.blocks = module.blocks[:1]
    cost = torch.randn(1, 8, *grid, dtype=torch.double, requires_grad=True)
    guide = torch.randn(1, 4, *grid, dtype=torch.double)
    module(cost, guide)[0, :, cell[0], cell[1]].pow(2).sum().backward()
    return cost.grad[0].abs().amax(0) > 1e-15


def test_a_cell_sees_its_window_alone():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4:, :4] = True
    assert torch.equal(seen((8, 8), (5, 1), 4), mask)


def test_a_border_window_of_a_grid_that_is_no_multiple_is_smaller():
    mask = torch.zeros(6, 7, dtype=torch.bool)
    mask[4:, 4:] = True
    assert torch.equal(seen((6, 7), (5, 6), 4), mask)


@pytest.mark.parametrize("grid", [(3, 3), (4, 4)])
def test_a_grid_within_one_window_is_attended_as_a_whole(grid):
    assert seen(grid, (0, 0), 12).all()


def test_padding_is_not_seen():
    # With equal cells attention returns their value, unless it sees the zeros beside them.
    torch.manual_seed(0)
    module = SpatialAggregation(dim=8, guide_dim=4, num_heads=2, window_size=4)
    cost = torch.randn(1, 8, 1, 1).expand(1, 8, 6, 7)
    guide = torch.randn(1, 4, 1, 1).expand(1, 4, 6, 7)
    output = module(cost, guide)
    torch.testing.assert_close(output, output[:, :, :1, :1].expand_as(output))
