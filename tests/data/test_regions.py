from pathlib import Path

import numpy as np
import pytest

from clipself_d2.data.regions import (
    clip_boxes,
    enlarge_boxes,
    fallback_box,
    grid_choices,
    keep_sizes,
    sample_grid_boxes,
    sample_proposals,
    tile_boxes,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "preprocess.npz")


def test_the_grids_are_the_published_24() -> None:
    ours = {tuple(row) for row in grid_choices(6).tolist()}
    assert ours == {tuple(row) for row in GOLDEN["choices"].tolist()}
    assert len(grid_choices(6)) == 24


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (5, 6)])
def test_the_tiles_are_the_published_ones(rows: int, columns: int) -> None:
    ours = tile_boxes(131, 90, rows, columns)
    theirs = GOLDEN[f"grid_{rows}x{columns}_boxes_px"]
    for box in theirs:
        assert np.abs(ours - box).max(axis=1).min() < 1e-4


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (4, 6)])
def test_tiles_cover_the_picture_once(rows: int, columns: int) -> None:
    boxes = tile_boxes(101, 57, rows, columns)
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()
    assert area == pytest.approx(101 * 57)
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() == 101
    assert boxes[:, 3].max() == 57
    assert len(boxes) == rows * columns


def test_a_drawn_grid_is_capped_and_repeats_with_its_generator() -> None:
    def draw() -> np.ndarray:
        return sample_grid_boxes(np.random.default_rng(3), 80, 60, max_split=6, max_boxes=5)

    assert len(draw()) <= 5
    assert np.array_equal(draw(), draw())


def test_every_grid_is_drawn(rng: np.random.Generator) -> None:
    sizes = {len(sample_grid_boxes(rng, 80, 60, max_split=2, max_boxes=20)) for _ in range(100)}
    assert sizes == {1, 2, 4}


def test_the_crop_of_a_proposal_is_the_published_one() -> None:
    x, y, width, height = GOLDEN["proposal_xywh"].astype(float)
    ours = enlarge_boxes(np.array([[x, y, x + width, y + height]]), 1.5, 131, 90)
    np.testing.assert_allclose(ours[0], GOLDEN["proposal_crop_box"], atol=1e-4)


def test_sizes_are_checked_before_the_draw(rng: np.random.Generator) -> None:
    tiny = np.tile([[0.0, 0.0, 2.0, 2.0]], (50, 1))
    good = np.tile([[0.0, 0.0, 20.0, 20.0]], (5, 1))
    drawn = sample_proposals(rng, np.concatenate([tiny, good]), size_range=(8, 1024), max_boxes=5)
    np.testing.assert_array_equal(drawn, good)


def test_both_bounds_of_the_size_are_inclusive() -> None:
    boxes = np.array([[0, 0, 8, 8], [0, 0, 7.9, 8], [0, 0, 10, 10], [0, 0, 10, 10.1]], float)
    assert len(keep_sizes(boxes, (8, 10))) == 2


def test_no_proposal_gives_no_box(rng: np.random.Generator) -> None:
    drawn = sample_proposals(rng, np.zeros((0, 4)), size_range=(8, 1024), max_boxes=5)
    assert drawn.shape == (0, 4)


def test_the_fallback_is_the_first_quarter_of_both_axes() -> None:
    assert fallback_box(80, 60).tolist() == [[0, 0, 20, 15]]


def test_clipping_does_not_change_its_argument() -> None:
    boxes = np.array([[-5.0, -5.0, 500.0, 20.0]])
    assert clip_boxes(boxes, 100, 50).tolist() == [[0, 0, 100, 20]]
    assert boxes[0, 0] == -5.0
