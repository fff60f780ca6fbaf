"""Positions of a ViT for any grid, rectangles included.

Legend: h w patch grid, C width.
"""

import math

import torch
import torch.nn.functional as F
from timm.layers import build_rotary_pos_embed
from torch import Tensor


def resize_positions(
    table_TC: Tensor, native: tuple[int, int], grid: tuple[int, int], *, num_prefix: int = 1
) -> Tensor:
    """Interpolate a learned position table; the class token's row is kept.

    Args:
        table_TC: (num_prefix + h0 * w0, C), class token first.
        native: Grid (h0, w0) of the table.
        grid: Grid (h, w) wanted.
        num_prefix: Number of rows before the patches': 1, or 0 without one for a class token.

    Returns:
        (num_prefix + h * w, C), differentiable in the table; the table itself where the grids
        agree.

    Reference: bicubic (a = -0.75) without antialias, as the published CLIPSelf models use. timm
    resamples with antialias, which moves dense features by about 5e-4.
    """
    # A graph for any grid has no such branch; resizing to the same grid changes no bit.
    if not torch.compiler.is_exporting() and native == grid:
        return table_TC
    patches = table_TC[num_prefix:].T.reshape(1, -1, *native)  # (1, C, h0, w0)
    resized = F.interpolate(patches.float(), grid, mode="bicubic", align_corners=False)
    rows = resized.flatten(2)[0].T.to(table_TC.dtype)
    return torch.cat([table_TC[:num_prefix], rows])


def rotary_table(
    grid: tuple[int, int],
    *,
    head_dim: int,
    temperature: float,
    reference: tuple[int, int],
    device: torch.device,
    offset: float = 0.0,
    indexing: str = "ij",
) -> Tensor:
    """Build the 2-D rotary positions of EVA02 and PE-Core; a grid is squeezed onto the reference.

    Args:
        grid: Grid (h, w) wanted.
        head_dim: Channels of one attention head.
        temperature: Base of the frequencies.
        reference: Grid of pre-training, (16, 16) for EVA02-CLIP.
        device: Device of the table.
        offset: Position of the first row and column, in cells; 1 for PE-Core's smaller models.
        indexing: "ij": rows turn the first half of the channels; "xy": columns do (PE-Core).

    Returns:
        (h * w, 2 * head_dim): sines, then cosines, as timm's attention takes them.

    Reference: EVA-02, arXiv 2303.11331; PE, arXiv 2504.13181. EVA's published code is for squares
    only; rectangles scale each axis by itself here.
    """
    sin, cos = build_rotary_pos_embed(
        list(grid),
        dim=head_dim,
        temperature=temperature,
        in_pixels=False,
        ref_feat_shape=list(reference),
        grid_offset=offset,
        grid_indexing=indexing,
        device=device,
    )
    return torch.cat([sin, cos], dim=-1)


def all_turns(table_PE: Tensor, num_prefix: int) -> Tensor:
    """Make what ``turn_pairs`` takes of a ``rotary_table`` (h * w, 2E): (num_prefix + h * w, 2E).

    Tokens before the patches turn by nothing. The sine of every first channel of a pair has the
    minus sign that the channel itself would have.
    """
    sin, cos = table_PE.chunk(2, dim=-1)
    # (x, y) turns to (x cos - y sin, y cos + x sin); ``turn_pairs`` has x and y swapped.
    sin = torch.stack([-sin[:, ::2], sin[:, 1::2]], dim=-1).flatten(1)
    return torch.cat(
        [F.pad(sin, (0, 0, num_prefix, 0)), F.pad(cos, (0, 0, num_prefix, 0), value=1.0)], dim=-1
    )


def turn_pairs(heads_NATE: Tensor, turns_T2E: Tensor) -> Tensor:
    """Turn every pair of neighbouring channels of queries or keys by the angle of its token.

    The values and number type of timm's rotation, whose slices of every second channel cost four
    more operations, and in the backward pass as many tensors of zeros.
    """
    sin, cos = turns_T2E.chunk(2, dim=-1)
    pairs = (*heads_NATE.shape[:-1], heads_NATE.shape[-1] // 2, 2)
    swapped = heads_NATE.reshape(pairs).flip(-1).flatten(-2)
    return (heads_NATE * cos + swapped * sin).type_as(heads_NATE)


def native_grid(num_patches: int, name: str) -> tuple[int, int]:
    """Grid (h, w) of a square position table; a ValueError refuses others by the model's name."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"{name} has {num_patches} positions, which is not a square grid")
    return side, side
