"""Norms of CRIS's heads, and the convolution that carries one.

Legend: N images, C channels.
"""

import math
from collections.abc import Callable

from torch import nn

MakeNorm = Callable[[int], nn.Module]
NORMS = ("BN", "SyncBN", "GN")
_GROUPS = 32


class FlexibleBatchNorm(nn.BatchNorm2d):
    """Batch norm of maps (N, C, H, W) and of vectors (N, C), on one process's batch."""

    def _check_input_dim(self, input) -> None:  # type: ignore[no-untyped-def]
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (N, C) or (N, C, H, W), got {tuple(input.shape)}")
        if self.training and input.dim() == 2 and len(input) < 2:
            raise ValueError(
                "batch norm of sentences needs two of them in a process's batch; raise "
                "SOLVER.IMS_PER_BATCH or set MODEL.CRIS.NORM to GN"
            )


def norm_maker(norm: str) -> MakeNorm:
    """Choose the norm of maps and of sentence vectors.

    Args:
        norm: "BN": statistics of the process's batch, two pairs at least; "SyncBN": of all
            processes, as published, the same as BN in a single one; "GN": of each sample by
            itself, for batches of any size.

    Returns:
        From a number of channels to a norm that takes (N, C) and (N, C, H, W).

    Raises:
        ValueError: If it is none of these.
    """
    if norm == "BN":
        return FlexibleBatchNorm
    if norm == "SyncBN":
        return nn.SyncBatchNorm
    if norm == "GN":
        return lambda channels: nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    raise ValueError(f"MODEL.CRIS.NORM is {norm!r}, expected one of {NORMS}")


def conv_norm_relu(
    in_dim: int, out_dim: int, kernel_size: int, make_norm: MakeNorm
) -> nn.Sequential:
    """Make a convolution that keeps the grid, a norm and a ReLU.

    Args:
        in_dim: Channels read.
        out_dim: Channels made.
        kernel_size: Odd side of the kernel, cells.
        make_norm: From ``norm_maker``.

    Returns:
        The three modules in order; the convolution has no bias.
    """
    convolution = nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, make_norm(out_dim), nn.ReLU(inplace=True))
