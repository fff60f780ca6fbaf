import math
from pathlib import Path

import numpy as np
import pytest
import torch

from clipself_d2.layers.positions import line_positions, map_positions

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden" / "cris" / "pos_embed.npz"


def test_tables_are_those_of_the_released_code():
    with np.load(GOLDEN) as file:
        expected = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
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


def test_with_a_span_every_row_covers_the_same_angles():
    short, long = (line_positions(n, 8, CPU, span=2 * math.pi) for n in (4, 8))
    torch.testing.assert_close(short[-1], long[-1])
    torch.testing.assert_close(short[0], long[1])
    assert short[-1, 0] == pytest.approx(math.sin(2 * math.pi), abs=1e-5)
