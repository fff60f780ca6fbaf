import math

import pytest
import torch

from clipself_d2.layers.positions import line_positions, map_positions

CPU = torch.device("cpu")


def test_tables_are_those_of_the_released_code(golden):
    expected = golden("pos_embed")
    pairs = [
        (map_positions((6, 8), 16, CPU), expected["pos2d_16_6_8"]),
        (map_positions((5, 3), 16, CPU), expected["pos2d_16_5_3"]),
        (line_positions(7, 16, CPU), expected["pos1d_16_7"]),
    ]
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_first_half_of_a_map_tells_columns_and_the_second_rows():
    table = map_positions((2, 3), 8, CPU).reshape(2, 3, 8)
    assert torch.equal(table[0, :, :4], table[1, :, :4])
    assert torch.equal(table[:, 0, 4:], table[:, 2, 4:])
    assert table[0, 1, 0] == pytest.approx(math.sin(1))
    assert table[1, 0, 5] == pytest.approx(math.cos(1))
