"""Views of a picture at inference: overlapping windows of a square canvas, and the whole.

Legend: V views, T classes, s side of a window, S side of the canvas, px.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Share of a window that the next one covers too.
_OVERLAP = 0.333
# Classes whose maps are enlarged at once.
_CHUNK = 32


@dataclass(frozen=True)
class WindowPlan:
    """How a picture is cut.

    Attributes:
        window_size: Side s of a window, px.
        canvas_size: Side S of the square to which the picture is squashed before it is cut, px; 0
            leaves the windows out, and the whole picture is the only view.

    Reference: inference of the released code of CAT-Seg, arXiv 2303.11797: 640 and 384 px.
    """

    window_size: int
    canvas_size: int

    def corners(self) -> list[tuple[int, int]]:
        """Upper left corners (row, column) of the windows on the canvas, px; [] without windows."""
        if not self.canvas_size:
            return []
        last = max(self.canvas_size - self.window_size, 0)
        stride = max(int(self.window_size * (1 - _OVERLAP)), 1)
        starts = [*range(0, last, stride), last]
        return [(row, column) for row in starts for column in starts]

    def cut(self, image: Tensor) -> Tensor:
        """Cut a picture (3, H, W): (V, 3, s, s), the windows, then the whole picture squashed."""
        side = self.window_size
        views = [_resize(image[None], side)]
        if self.canvas_size:
            canvas = _resize(image[None], max(self.canvas_size, side))
            parts = [canvas[..., r : r + side, c : c + side] for r, c in self.corners()]
            views = [*parts, *views]
        return torch.cat(views)

    def join(self, scores: Iterable[Tensor]) -> Tensor:
        """Average windows where they overlap, and the result with the whole picture.

        Args:
            scores: V maps (T, s, s) in the order of ``cut``; taken one by one, so that of a
                generator one map at a time is in memory.

        Returns:
            (T, S, S), or (T, s, s) without windows.
        """
        views = iter(scores)
        if not self.canvas_size:
            return next(views)
        side, canvas = self.window_size, max(self.canvas_size, self.window_size)
        total, count = torch.zeros(0), torch.zeros(0)
        for number, (row, column) in enumerate(self.corners()):
            score = next(views)
            if not number:
                total = score.new_zeros((score.shape[0], canvas, canvas))
                count = score.new_zeros((canvas, canvas))
            total[:, row : row + side, column : column + side] += score
            count[row : row + side, column : column + side] += 1
        # A few classes at a time: with hundreds of them a second canvas is gigabytes.
        whole = next(views)
        for first in range(0, len(total), _CHUNK):
            rows = slice(first, first + _CHUNK)
            total[rows] = (total[rows] / count + _resize(whole[None, rows], canvas)[0]) / 2
        return total


def _resize(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
