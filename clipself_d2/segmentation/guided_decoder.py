"""Upsampling of a cost embedding beside finer maps of the image tower.

Legend: N images, T classes, C channels, h w grid.
"""

import torch
from torch import Tensor, nn

# Channels of a group of the group norms.
_GROUP = 16


class GuidedUpsampling(nn.Module):
    """Doubles the grid by a transposed convolution and fuses a guide by two convolutions.

    Args:
        in_dim: Channels before; the transposed convolution leaves room for the guide's.
        out_dim: Channels after, a multiple of 16.
        guide_dim: Channels of the guide, fewer than ``in_dim``.

    Reference: CAT-Seg, arXiv 2303.11797, section 3.5.
    """

    def __init__(self, *, in_dim: int, out_dim: int, guide_dim: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(in_dim, in_dim - guide_dim, kernel_size=2, stride=2)
        self.fuse = nn.Sequential(*_convolution(in_dim, out_dim), *_convolution(out_dim, out_dim))

    def forward(self, cost: Tensor, guide: Tensor) -> Tensor:
        """Enlarge (N, T, C, h, w) to (N, T, out_dim, 2h, 2w) by a guide of that grid."""
        count, num_classes = cost.shape[:2]
        fine = self.enlarge(cost.flatten(0, 1))
        beside = guide.repeat_interleave(num_classes, dim=0)
        fused = self.fuse(torch.cat([fine, beside.to(fine.dtype)], dim=1))
        return fused.unflatten(0, (count, num_classes))


def _convolution(in_dim: int, out_dim: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_dim, out_dim, kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(max(out_dim // _GROUP, 1), out_dim),
        nn.ReLU(),
    ]
