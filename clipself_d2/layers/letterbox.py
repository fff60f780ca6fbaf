"""A picture centred on a square canvas, and the way back.

Legend: H W pixels of the picture, S side of the canvas.
"""

import cv2
import numpy as np


def letterbox_matrix(height: int, width: int, size: int) -> np.ndarray:
    """Scale a picture (H, W) to the canvas S and centre it: (2, 3) float64 from (x, y, 1), px."""
    scale = min(size / height, size / width)
    left, top = (size - scale * width) / 2, (size - scale * height) / 2
    # Three corners in float32, as in the released code of CRIS: a few pixels depend on it.
    corners = [[0, 0], [width, 0], [0, height]]
    placed = [[left, top], [left + scale * width, top], [left, top + scale * height]]
    matrix = cv2.getAffineTransform(np.array(corners, np.float32), np.array(placed, np.float32))
    return np.asarray(matrix)


def invert_matrix(matrix: np.ndarray) -> np.ndarray:
    """Invert a letterbox: (2, 3) from the canvas to the picture."""
    return np.asarray(cv2.invertAffineTransform(matrix))


def letterbox_image(image: np.ndarray, size: int, border: tuple[float, float, float]) -> np.ndarray:
    """Place a picture (H, W, 3) uint8 on the canvas, cubic, in a border colour of 0 to 255."""
    matrix = letterbox_matrix(image.shape[0], image.shape[1], size)
    # The border of warpAffine is constant unless it is told otherwise.
    placed = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_CUBIC, borderValue=border)
    return np.asarray(placed)


def letterbox_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Place a mask (H, W), bool or 0 and 1, on the canvas: (S, S) float32, linear, 0 around it.

    Steps are of 1 / 255, as in the released code of CRIS.
    """
    matrix = letterbox_matrix(mask.shape[0], mask.shape[1], size)
    scaled = np.asarray(mask, np.uint8) * 255
    placed = cv2.warpAffine(scaled, matrix, (size, size), flags=cv2.INTER_LINEAR)
    return np.asarray(placed, np.float32) / 255.0


def restore_map(canvas: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut a map (S, S) float32 back to the picture's (H, W), cubic; its range may grow a little."""
    inverse = invert_matrix(letterbox_matrix(height, width, canvas.shape[0]))
    # Beyond the canvas is 0, which is warpAffine's default border.
    return np.asarray(cv2.warpAffine(canvas, inverse, (width, height), flags=cv2.INTER_CUBIC))
