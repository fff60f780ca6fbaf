"""Spatial aggregation: attention in shifted windows over the cost map of each class.

Legend: B maps (images x classes), C width, G guide channels, h w grid, s side of a window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Added to the scores of cells that a shift, or padding, has put beside cells of another place.
_APART = -100.0
_MLP_RATIO = 4


class SpatialAggregation(nn.Module):
    """Two blocks of window attention, the second with windows shifted by half.

    Args:
        dim: Width C of the cost embedding.
        guide_dim: Channels G of the appearance guide; 0 for none.
        num_heads: Attention heads.
        window_size: Side of a window, cells; smaller grids are one window.

    Reference: CAT-Seg, arXiv 2303.11797, section 3.3; Swin, arXiv 2103.14030, without the relative
    position bias.
    """

    def __init__(self, *, dim: int, guide_dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.guide_norm = nn.LayerNorm(guide_dim) if guide_dim else None
        self.blocks = nn.ModuleList(
            _WindowBlock(dim, guide_dim, num_heads, window_size, shifted) for shifted in (0, 1)
        )

    def forward(self, cost: Tensor, guide: Tensor | None) -> Tensor:
        """Aggregate (B, C, h, w), any grid, by a guide (B, G, h, w), or None."""
        cells = cost.permute(0, 2, 3, 1)
        if guide is not None and self.guide_norm is not None:
            guide = self.guide_norm(guide.permute(0, 2, 3, 1))
        for block in self.blocks:
            cells = block(cells, guide)
        return cells.permute(0, 3, 1, 2)


class _WindowBlock(nn.Module):
    """One pre-norm block over (B, h, w, C)."""

    def __init__(
        self, dim: int, guide_dim: int, num_heads: int, window_size: int, shifted: int
    ) -> None:
        super().__init__()
        self.window_size, self.shifted, self.num_heads = window_size, shifted, num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim + guide_dim, dim)
        self.key = nn.Linear(dim + guide_dim, dim)
        self.value = nn.Linear(dim, dim)
        self.project = nn.Linear(dim, dim)
        hidden = _MLP_RATIO * dim
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, cells: Tensor, guide: Tensor | None) -> Tensor:
        height, width = cells.shape[1:3]
        # One window needs no neighbours, so that nothing is shifted.
        size = min(self.window_size, height, width)
        shift = size // 2 if self.shifted and size < max(height, width) else 0
        normed = self.norm1(cells)
        guided = normed if guide is None else torch.cat([normed, guide.to(normed.dtype)], dim=-1)
        query, key, value = (
            self._split(_to_windows(linear(source), size, shift))
            for linear, source in ((self.query, guided), (self.key, guided), (self.value, normed))
        )
        mask = _apart_mask((height, width), size, shift, cells.device)
        if mask is not None:
            mask = mask.repeat(cells.shape[0], 1, 1)[:, None].to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = mixed.transpose(1, 2).flatten(2)
        cells = cells + _from_windows(self.project(mixed), (height, width), size, shift)
        output: Tensor = cells + self.mlp(self.norm2(cells))
        return output

    def _split(self, windows: Tensor) -> Tensor:
        count, length, channels = windows.shape
        shape = (count, length, self.num_heads, channels // self.num_heads)
        return windows.reshape(shape).transpose(1, 2)


def _to_windows(cells: Tensor, size: int, shift: int) -> Tensor:
    """(B, h, w, C) to (B * windows, s * s, C), padded to whole windows and rolled."""
    height, width = cells.shape[1:3]
    cells = F.pad(cells, (0, 0, 0, -width % size, 0, -height % size))
    if shift:
        cells = cells.roll((-shift, -shift), dims=(1, 2))
    count, height, width, channels = cells.shape
    parts = cells.reshape(count, height // size, size, width // size, size, channels)
    return parts.transpose(2, 3).reshape(-1, size * size, channels)


def _from_windows(windows: Tensor, grid: tuple[int, int], size: int, shift: int) -> Tensor:
    rows, columns = (grid[0] + size - 1) // size, (grid[1] + size - 1) // size
    parts = windows.reshape(-1, rows, columns, size, size, windows.shape[-1]).transpose(2, 3)
    cells = parts.reshape(-1, rows * size, columns * size, windows.shape[-1])
    if shift:
        cells = cells.roll((shift, shift), dims=(1, 2))
    return cells[:, : grid[0], : grid[1]]


def _apart_mask(
    grid: tuple[int, int], size: int, shift: int, device: torch.device
) -> Tensor | None:
    """(windows, s * s, s * s) scores between cells, or None where all cells of a window see.

    After the roll a window at the lower or right border holds cells of both borders, and of the
    padding; cells see those of their own region.
    """
    sides = [(side + size - 1) // size * size for side in grid]
    if not shift and tuple(sides) == grid:
        return None
    regions = []
    for side, padded in zip(grid, sides, strict=True):
        places = (torch.arange(padded, device=device) + shift) % padded
        wrapped = torch.arange(padded, device=device) + shift >= padded
        # 0: in its place, 1: wrapped round by the roll, 2: padding.
        regions.append(torch.where(places >= side, 2, wrapped.long()))
    numbers = 3 * regions[0][:, None] + regions[1][None, :]
    windows = _to_windows(numbers[None, :, :, None].float(), size, 0)[..., 0]
    return (windows[:, :, None] != windows[:, None, :]).float() * _APART
