"""Norms of CRIS's heads, and the convolution that carries one.

Legend: N images, C channels.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

MakeNorm = Callable[[int], nn.Module]
NORMS = ("BN", "SyncBN", "GN")
_GROUPS = 32


class LocalBatchNorm(nn.BatchNorm2d):
    """Batch norm of maps (N, C, H, W) and of vectors (N, C), over one process's batch."""

    def _check_input_dim(self, input: Tensor) -> None:
        _check_batch(self, input)


class SharedBatchNorm(nn.SyncBatchNorm):
    """Batch norm of maps and vectors over the batches of all processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if not torch.distributed.is_initialized():
            _check_batch(self, input)


class SampleNorm(nn.GroupNorm):
    """Group norm of maps (N, C, H, W), layer norm of vectors (N, C): each sample by itself.

    Maps have up to 32 groups of at least 4 channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(1 if channels % 4 else math.gcd(_GROUPS, channels // 4), channels)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the shape is kept."""
        if input.dim() == 2:
            return F.layer_norm(input, (self.num_channels,), self.weight, self.bias, self.eps)
        return super().forward(input)


def _check_batch(module: nn.Module, features: Tensor) -> None:
    if module.training and features.dim() == 2 and len(features) < 2:
        raise ValueError(
            "batch norm of sentences needs two of them in a batch; raise SOLVER.IMS_PER_BATCH or "
            "set MODEL.CRIS.NORM to GN"
        )


def norm_maker(norm: str) -> MakeNorm:
    """Choose the norm of maps (N, C, H, W) and of sentence vectors (N, C).

    "BN": statistics of the process's batch, two pairs at least; "SyncBN": of all processes, as
    published, the same as BN in a single one; "GN": of each sample by itself, for batches of any
    size.
    """
    if norm == "BN":
        return LocalBatchNorm
    if norm == "SyncBN":
        return SharedBatchNorm
    if norm == "GN":
        return SampleNorm
    raise ValueError(f"MODEL.CRIS.NORM is {norm!r}, expected one of {NORMS}")


def conv_norm_relu(
    in_dim: int, out_dim: int, kernel_size: int, make_norm: MakeNorm
) -> nn.Sequential:
    """Make a convolution without bias that keeps the grid, a norm and a ReLU."""
    convolution = nn.Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(convolution, make_norm(out_dim), nn.ReLU(inplace=True))
