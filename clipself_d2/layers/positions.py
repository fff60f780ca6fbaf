"""Fixed positions of maps and of texts.

Legend: h w grid, T tokens, C channels.
"""

import math

import torch
from torch import Tensor

_BASE = 1e4


def line_positions(
    length: int, channels: int, device: torch.device, span: float | None = None
) -> Tensor:
    """Sinusoids over a row of tokens, (T, C) float32: sines on even channels, cosines on odd ones.

    ``span`` is the angle of the last token in the fastest channel, so that a row of any length
    covers the same angles; None: every token is one radian further.

    Reference: Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    steps = torch.arange(0, channels, 2, dtype=torch.float32, device=device)
    frequencies = torch.exp(steps * (-math.log(_BASE) / channels))
    places = torch.arange(length, dtype=torch.float32, device=device)
    if span is not None:
        # From 1, as in DETR: the last place has the whole angle.
        places = (places + 1) * (span / length)
    angles = places[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def map_positions(
    grid: tuple[int, int], channels: int, device: torch.device, span: float | None = None
) -> Tensor:
    """Sinusoids over a map, (h * w, C): columns in the first half of channels, rows behind.

    C is a multiple of 4, and ``span`` is as for ``line_positions``, of rows and of columns.

    Reference: the two-dimensional form of CRIS, arXiv 2111.15174; with ``span`` 2 pi that of
    DETR, arXiv 2005.12872, but for the order of the channels.
    """
    height, width = grid
    columns = line_positions(width, channels // 2, device, span)
    rows = line_positions(height, channels // 2, device, span)
    parts = [columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)]
    return torch.cat(parts, dim=2).flatten(0, 1)
