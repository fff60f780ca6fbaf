import json
from pathlib import Path

import numpy as np
import pytest

from clipself_d2.layers.letterbox import (
    invert_matrix,
    letterbox_image,
    letterbox_mask,
    letterbox_matrix,
    restore_map,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "cris"
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "letterbox.npz") as file:
        return {key: file[key] for key in file.files}


def test_picture_and_mask_are_placed_as_by_the_released_code(golden):
    matrix = letterbox_matrix(30, 47, 32)
    np.testing.assert_allclose(matrix, golden["mat"], atol=1e-6)
    np.testing.assert_allclose(invert_matrix(matrix), golden["inv"], atol=1e-6)
    assert np.array_equal(letterbox_image(golden["img"], 32, CLIP_MEAN), golden["img_warp"])
    mask = letterbox_mask(golden["mask"] > 0, 32)
    np.testing.assert_allclose(mask, golden["mask_warp"] / 255.0, atol=1e-6)


def test_prediction_returns_as_by_the_released_code(golden):
    restored = restore_map(golden["pred"], 30, 47)
    np.testing.assert_allclose(restored, golden["pred_back"], atol=1e-5)


def test_matrices_of_many_sizes_are_those_of_the_released_code():
    table = json.loads((GOLDEN / "tokens_affine.json").read_text())["affine_416"]
    assert len(table) == 5
    for size, expected in table.items():
        height, width = (int(side) for side in size.split("x"))
        matrix = letterbox_matrix(height, width, 416)
        np.testing.assert_allclose(matrix, expected["mat"], atol=1e-6)
        np.testing.assert_allclose(invert_matrix(matrix), expected["inv"], atol=1e-6)


def test_a_square_of_the_canvas_size_passes_unchanged(rng):
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(letterbox_image(image, 16, CLIP_MEAN), image)
    assert np.array_equal(restore_map(image[..., 0].astype(np.float32), 16, 16), image[..., 0])


def test_a_wide_picture_lies_between_two_borders():
    placed = letterbox_image(np.full((10, 20, 3), 7, np.uint8), 20, (1.0, 2.0, 3.0))
    assert placed[2].tolist() == [[1, 2, 3]] * 20
    assert placed[10].tolist() == [[7, 7, 7]] * 20
    assert not letterbox_mask(np.ones((10, 20), np.bool_), 20)[[2, 17]].any()


def test_a_disc_returns_to_its_place():
    y, x = np.mgrid[:60, :100]
    disc = (x - 30) ** 2 + (y - 40) ** 2 < 225
    restored = restore_map(letterbox_mask(disc, 64), 60, 100) > 0.5
    assert (disc & restored).sum() / (disc | restored).sum() > 0.95
