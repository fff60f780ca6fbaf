"""CRIS's cross-modal neck.

Legend: N pairs of image and sentence, C channels, D sentence embedding; levels 3, 4 and 5 have
strides in the ratio 1 : 2 : 4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.referring.norms import MakeNorm, SharedBatchNorm, conv_norm_relu


class CrisNeck(nn.Module):
    """Fuses three image levels with the sentence into one map on the grid of the middle level.

    Args:
        in_dims: Channels of the levels 3, 4 and 5.
        state_dim: Width D of the sentence embedding.
        out_dims: Widths of the fused levels 3, 4 and 5; the second is that of the output.
        make_norm: From a number of channels to a norm.
        shares_space: Whether level 5 and the sentence are embeddings of one space, as CLIP's dense
            map and text are. Their projections then start as one matrix: the product of their
            ReLUs is a kernel of the angle between them (Cho and Saul, 2009), so that it points at
            what the sentence names from the first step on.

    Reference: Wang et al., CRIS, arXiv 2111.15174, section 3.2. As in the released code, and
    differing from the paper's formulas: the product of level 5 with the sentence passes a norm and
    a ReLU before it is upsampled; levels 4 and 3 are joined by concatenation and a 1 x 1
    convolution without another product; coordinates are concatenated, not added.
    """

    def __init__(
        self,
        *,
        in_dims: Sequence[int],
        state_dim: int,
        out_dims: Sequence[int] = (256, 512, 1024),
        make_norm: MakeNorm = SharedBatchNorm,
        shares_space: bool = False,
    ) -> None:
        super().__init__()
        in3, in4, in5 = in_dims
        out3, out4, out5 = out_dims
        self.txt_proj = nn.Sequential(
            nn.Linear(state_dim, out5, bias=False), make_norm(out5), nn.ReLU(inplace=True)
        )
        self.f1_v_proj = conv_norm_relu(in5, out5, 1, make_norm)
        self.norm_layer = nn.Sequential(make_norm(out5), nn.ReLU(inplace=True))
        self.f2_v_proj = conv_norm_relu(in4, out4, 3, make_norm)
        self.f2_cat = conv_norm_relu(out4 + out5, out4, 1, make_norm)
        self.f3_v_proj = conv_norm_relu(in3, out3, 3, make_norm)
        self.f3_cat = conv_norm_relu(out3 + out4, out4, 1, make_norm)
        self.f4_proj5 = conv_norm_relu(out5, out4, 3, make_norm)
        self.f4_proj4 = conv_norm_relu(out4, out4, 3, make_norm)
        self.f4_proj3 = conv_norm_relu(out4, out4, 3, make_norm)
        self.aggr = conv_norm_relu(3 * out4, out4, 1, make_norm)
        self.coordconv = nn.Sequential(
            CoordConv(out4, out4, make_norm), conv_norm_relu(out4, out4, 3, make_norm)
        )
        if shares_space:
            start = nn.init.orthogonal_(torch.empty(out5, state_dim))
            with torch.no_grad():
                for projection in (self.txt_proj, self.f1_v_proj):
                    weight = next(projection.parameters())
                    weight.copy_(start.view_as(weight))

    def forward(self, levels: Sequence[Tensor], state: Tensor) -> Tensor:
        """Fuse (N, C3, 2h, 2w), (N, C4, h, w), (N, C5, h / 2, w / 2) and (N, D): (N, C, h, w)."""
        level3, level4, level5 = levels
        sentence = self.txt_proj(state)[:, :, None, None]
        fused5 = self.norm_layer(self.f1_v_proj(level5) * sentence)
        fused4 = self.f2_cat(torch.cat([self.f2_v_proj(level4), upsample(fused5)], dim=1))
        pooled3 = F.avg_pool2d(self.f3_v_proj(level3), 2)
        fused3 = self.f3_cat(torch.cat([pooled3, fused4], dim=1))
        joined = torch.cat(
            [self.f4_proj3(fused3), self.f4_proj4(fused4), upsample(self.f4_proj5(fused5))], dim=1
        )
        fused: Tensor = self.coordconv(self.aggr(joined))
        return fused


class CoordConv(nn.Module):
    """A 3 x 3 convolution that also sees each cell's column and row, both in [-1, 1].

    Reference: Liu et al., CoordConv, arXiv 1807.03247, without the radius.
    """

    def __init__(self, in_dim: int, out_dim: int, make_norm: MakeNorm) -> None:
        super().__init__()
        self.conv1 = conv_norm_relu(in_dim + 2, out_dim, 3, make_norm)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve a map (N, C, h, w) with its coordinates; the grid is kept."""
        output: Tensor = self.conv1(add_coordinates(features))
        return output


def add_coordinates(features: Tensor) -> Tensor:
    """Append x, then y, of every cell, from -1 at the first to 1 at the last: (N, C + 2, h, w)."""
    height, width = features.shape[2:]
    x = torch.linspace(-1, 1, width, dtype=features.dtype, device=features.device)
    y = torch.linspace(-1, 1, height, dtype=features.dtype, device=features.device)
    shape = (features.shape[0], 1, height, width)
    return torch.cat([features, x.expand(shape), y[:, None].expand(shape)], dim=1)


def upsample(features: Tensor) -> Tensor:
    """Double both sides of a map bilinearly, cells as areas (align_corners False)."""
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
