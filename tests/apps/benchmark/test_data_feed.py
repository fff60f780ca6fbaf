"""The benchmark's loaders: what is timed, and padding that can be counted by hand."""

import pytest

from clipself_d2.apps.benchmark.data_feed import data_rows, padding_rows
from clipself_d2.apps.benchmark.measure import BenchmarkOptions


def test_every_mapper_is_timed_and_the_first_is_the_measure() -> None:
    rows = data_rows(BenchmarkOptions(repeats=1))
    assert len(rows) == 4
    assert rows[0]["speed ratio"] == 1
    assert all(row["pictures/s a worker"] == pytest.approx(1000 / row["ms"]) for row in rows)


def test_padding_of_4_to_3_is_a_quarter_in_squares_and_nothing_among_its_like() -> None:
    squares, largest, alike = padding_rows(BenchmarkOptions())
    assert squares["padded share"] == pytest.approx(0.25)
    assert squares["pixels of squares"] == 1
    # Of batches of eight few have one aspect by chance.
    assert 0.15 < largest["padded share"] < 0.25
    # One batch alone is of both.
    assert alike["padded share"] < 0.001
    assert alike["pixels of squares"] == pytest.approx(0.75, abs=0.001)
