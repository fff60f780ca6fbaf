"""Fixed positions of maps and of texts.

Legend: h w grid, T tokens, C channels.
"""

import math

import torch
from torch import Tensor

_BASE = 1e4


def line_positions(length: int, channels: int, device: torch.device) -> Tensor:
    """Sinusoids over a row of tokens: sines on even channels, cosines on odd ones.

    Args:
        length: T.
        channels: C, even.
        device: Device of the table.

    Returns:
        (T, C) float32.

    Reference: Vaswani et al., arXiv 1706.03762, section 3.5.
    """
    steps = torch.arange(0, channels, 2, dtype=torch.float32, device=device)
    frequencies = torch.exp(steps * (-math.log(_BASE) / channels))
    angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def map_positions(grid: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Sinusoids over a map: columns in the first half of the channels, rows in the second.

    Args:
        grid: (h, w).
        channels: C, a multiple of 4.
        device: Device of the table.

    Returns:
        (h * w, C) float32, row by row.

    Reference: the two-dimensional form of CRIS, arXiv 2111.15174.
    """
    height, width = grid
    columns = line_positions(width, channels // 2, device)
    rows = line_positions(height, channels // 2, device)
    parts = [columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)]
    return torch.cat(parts, dim=2).flatten(0, 1)
