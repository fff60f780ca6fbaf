"""Named forms of self-attention for towers that split a block into its parts.

Legend: N images, A heads, E channels of a head, T tokens (prefix tokens first, then patches row by
row), R regions, h w patch grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Heads(NamedTuple):
    """Query, key and value of a block's attention, (N, A, T, E) each, rotated where it rotates."""

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """Which block of a tower uses which attention.

    Attributes:
        window_size: Side of a window in cells; 0: every block is global.
        global_blocks: 0-based numbers of the blocks that stay global where there are windows.
    """

    window_size: int = 0
    global_blocks: tuple[int, ...] = ()

    def strategy(self, number: int) -> str:
        """Name the attention of a block: "global" or "window"."""
        return "window" if self.window_size and number not in self.global_blocks else "global"


def quarter_blocks(num_blocks: int) -> tuple[int, ...]:
    """Last block of every quarter of a tower, 0-based: 2, 5, 8, 11 of 12 blocks.

    Below 4 blocks some quarters are empty.

    Reference: ViTDet, arXiv 2203.16527, section 3.
    """
    ends = {num_blocks * quarter // 4 - 1 for quarter in (1, 2, 3, 4)}
    return tuple(sorted(end for end in ends if end >= 0))


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Cut channels into heads: (N, T, A * E) to (N, A, T, E)."""
    count, length, channels = tokens.shape
    return tokens.reshape(count, length, num_heads, channels // num_heads).transpose(1, 2)


def merge_heads(mixed: Tensor) -> Tensor:
    """Undo ``split_heads``."""
    return mixed.transpose(1, 2).flatten(2)


def global_attention(heads: Heads) -> Tensor:
    """Let every token see every token: (N, A, T, E)."""
    return F.scaled_dot_product_attention(heads.query, heads.key, heads.value)


def masked_attention(query: Tensor, heads: Heads, seen: Tensor) -> Tensor:
    """Let extra queries (N, A, R, E) see some of the tokens.

    ``seen`` (N, 1, R, T) bool tells which tokens each query sees, at least one each.
    """
    return F.scaled_dot_product_attention(query, heads.key, heads.value, attn_mask=seen)


def window_attention(
    heads: Heads, *, grid: tuple[int, int], window_size: int, num_prefix: int
) -> Tensor:
    """Let patches see the patches of their window and the prefix tokens.

    Windows do not overlap and begin at the top left. Where the grid is no multiple of the window,
    the last row and column of windows is padded; padded keys are masked, padded queries cropped.
    Prefix tokens (the class token) are seen in every window and see all tokens themselves, so
    with one window over the whole grid this is ``global_attention``.

    Args:
        heads: Query, key and value; T is num_prefix + h * w. Rotary positions are already in them,
            so that each patch keeps the position it has in the whole grid.
        grid: Grid (h, w).
        window_size: Side of a window in cells; an axis shorter than that is one window.
        num_prefix: Number of tokens before the patches.

    Returns:
        (N, A, T, E).

    Reference: ViTDet, arXiv 2203.16527, section 3, which has no class token.
    """
    height, width = min(window_size, grid[0]), min(window_size, grid[1])
    patches = (part[:, :, num_prefix:] for part in heads)
    query, key, value = (_to_windows(part, grid, height, width) for part in patches)
    num_windows = query.shape[0] // heads.query.shape[0]
    outputs = []
    if num_prefix:
        prefix = heads.query[:, :, :num_prefix]
        outputs.append(F.scaled_dot_product_attention(prefix, heads.key, heads.value))
        # (N * windows, A, prefix, E): every window has its picture's prefix tokens as keys.
        shared = [p[:, :, :num_prefix].repeat_interleave(num_windows, dim=0) for p in heads[1:]]
        key, value = torch.cat([shared[0], key], dim=2), torch.cat([shared[1], value], dim=2)
    mask = None
    if grid[0] % height or grid[1] % width:
        # Ones take the way of the patches; what padding has put beside them is 0.
        real = _to_windows(query.new_ones((1, 1, grid[0] * grid[1], 1)), grid, height, width)
        real = F.pad(real[..., 0], (num_prefix, 0), value=1.0).bool()
        mask = real[:, :, None].repeat(heads.query.shape[0], 1, 1, 1)
    windows = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    outputs.append(_from_windows(windows, grid, height, width))
    return torch.cat(outputs, dim=2)


def _to_windows(patches: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """(N, A, h * w, E) to (N * windows, A, height * width, E), padded with zeros."""
    count, num_heads, _, channels = patches.shape
    cells = patches.reshape(count, num_heads, *grid, channels)
    # What is missing to a whole window, by Python's modulo of a negative number.
    bottom, right = -grid[0] % height, -grid[1] % width
    if bottom or right:
        cells = F.pad(cells, (0, 0, 0, right, 0, bottom))
    rows, columns = (grid[0] + bottom) // height, (grid[1] + right) // width
    cells = cells.reshape(count, num_heads, rows, height, columns, width, channels)
    # Windows beside the batch: (N, rows, columns, A, height, width, E).
    return cells.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def _from_windows(windows: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """Undo ``_to_windows`` and crop the padding."""
    _, num_heads, _, channels = windows.shape
    rows, columns = (grid[0] + height - 1) // height, (grid[1] + width - 1) // width
    cells = windows.reshape(-1, rows, columns, num_heads, height, width, channels)
    cells = cells.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return cells[:, :, : grid[0], : grid[1]].flatten(2, 3)


def seen_tokens(masks: Sequence[Tensor], grid: tuple[int, int], num_images: int) -> Tensor:
    """Say which tokens the copies of the class token see that stand for regions.

    (N, 1, K, 1 + h * w) bool with the class token always seen; K is the most of one image. There is
    one (Ki, h, w) mask for each image; a ValueError refuses another number or grid.
    """
    if len(masks) != num_images:
        raise ValueError(f"got masks for {len(masks)} images but {num_images} images")
    wrong = [tuple(mask.shape[1:]) for mask in masks if tuple(mask.shape[1:]) != grid]
    if wrong:
        raise ValueError(f"mask grid {wrong[0]} is not the tower's {grid}")
    most = max((len(mask) for mask in masks), default=0)
    seen = torch.zeros((num_images, 1, most, 1 + grid[0] * grid[1]), dtype=torch.bool)
    seen[..., 0] = True
    for number, mask in enumerate(masks):
        seen[number, 0, : len(mask), 1:] = mask.flatten(1).bool().cpu()
    return seen
