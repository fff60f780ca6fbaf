"""Regions for distillation: grids, proposals, crops. Numpy in, numpy out.

Boxes are XYXY px of the original image. Legend: R regions, M most rows or columns.
"""

import math
from collections.abc import Sequence

import numpy as np


def grid_choices(max_split: int) -> np.ndarray:
    """List the grids that a picture may be cut into: (G, 2) int64 of (rows, columns).

    There are columns from half to twice the rows, at most M; 24 grids for M = 6.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2 (m x n patches).
    """
    return np.array(
        [
            (rows, columns)
            for rows in range(1, max_split + 1)
            for columns in range(math.ceil(rows / 2), min(2 * rows, max_split) + 1)
        ]
    )


def tile_boxes(width: float, height: float, rows: int, columns: int) -> np.ndarray:
    """Cut a picture (px) into equal tiles: (rows * columns, 4) float64, row by row."""
    x, y = np.linspace(0, width, columns + 1), np.linspace(0, height, rows + 1)
    # Edges of the tiles, one more than there are; the four tables are (rows, columns).
    left, top = np.meshgrid(x[:-1], y[:-1])
    right, bottom = np.meshgrid(x[1:], y[1:])
    return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)


def sample_grid_boxes(
    rng: np.random.Generator, width: float, height: float, *, max_split: int, max_boxes: int
) -> np.ndarray:
    """Draw a grid of at most ``max_split`` rows or columns, and some of its tiles.

    (R, 4) float64 in random order, 1 <= R <= max_boxes.
    """
    choices = grid_choices(max_split)
    rows, columns = choices[int(rng.integers(len(choices)))]
    boxes = tile_boxes(width, height, int(rows), int(columns))
    order = rng.permutation(len(boxes))[:max_boxes]
    return np.asarray(boxes[order])


def keep_sizes(boxes: np.ndarray, size_range: tuple[float, float]) -> np.ndarray:
    """Drop boxes whose area's square root (px) is out of a range, which is inclusive."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # Squares are compared, which are exact where roots of whole numbers are not.
    fits = (area >= size_range[0] ** 2) & (area <= size_range[1] ** 2)
    return np.asarray(boxes[fits])


def sample_proposals(
    rng: np.random.Generator, boxes: np.ndarray, *, size_range: tuple[float, float], max_boxes: int
) -> np.ndarray:
    """Draw at most ``max_boxes`` of (R, 4) proposals of fitting size, in random order; R may be 0.

    ``size_range`` holds square roots of areas, px.

    Reference: CLIPSelf, arXiv 2310.01403, appendix A.4. Differs: sizes are checked before the draw,
    so that pictures with many tiny proposals do not end up with few regions; the published code
    checks after it.
    """
    # An empty list has no second axis of its own.
    boxes = keep_sizes(boxes.reshape(-1, 4), size_range)
    return np.asarray(boxes[rng.permutation(len(boxes))[:max_boxes]])


def random_boxes(
    rng: np.random.Generator,
    width: float,
    height: float,
    *,
    size_range: tuple[float, float],
    num_boxes: int,
) -> np.ndarray:
    """Draw boxes of any place, size and shape, as a source of regions that knows no objects.

    (R, 4): sizes, square roots of areas in px, even on a logarithmic scale and at most the
    picture's shorter side, sides up to 1 : 2, places even in the picture.

    Reference: the random boxes of RegionCLIP, arXiv 2112.09106, section 4. Differs: the published
    code places them on a grid of 8 px and gives one set to a whole batch.
    """
    largest = min(size_range[1], width, height)
    smallest = min(size_range[0], largest)
    # (R,); drawn in this order: sizes, shapes, places.
    size = np.exp(rng.uniform(np.log(smallest), np.log(largest), num_boxes))
    stretch = np.exp2(rng.uniform(-0.5, 0.5, num_boxes))
    # What one side gains the other loses, so that the area stays, but for the picture's border.
    side = np.minimum(np.stack([size * stretch, size / stretch], axis=1), [width, height])
    corner = rng.uniform(0, 1, (num_boxes, 2)) * (np.array([width, height]) - side)
    return np.concatenate([corner, corner + side], axis=1)


def fallback_box(width: float, height: float) -> np.ndarray:
    """The box of a picture without any proposal, (1, 4): its first quarter along both axes."""
    # As the published code fills the table of a picture that has no box.
    return np.array([[0.0, 0.0, width / 4, height / 4]])


def enlarge_boxes(boxes: np.ndarray, factor: float, width: float, height: float) -> np.ndarray:
    """Enlarge boxes (R, 4) about their centres by a factor and clip them to the picture."""
    # The centre stays, so that at the border a crop is smaller than the factor says.
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) * factor / 2
    return clip_boxes(np.concatenate([center - half, center + half], axis=1), width, height)


def corners_of(bbox: Sequence[float]) -> list[float]:
    """Turn COCO's box, XYWH px, into its corners, XYXY."""
    x, y, width, height = map(float, bbox)
    return [x, y, x + width, y + height]


def clip_boxes(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Clip boxes (R, 4) to the picture of width and height in px."""
    return np.asarray(np.clip(boxes, 0, [width, height, width, height]))
