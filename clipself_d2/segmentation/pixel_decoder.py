"""Pixel decoders: from a backbone's stages to mask features and three maps for the queries.

Legend: N images, C channels, h w cells of a level.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from clipself_d2.backbones.pyramid import filled_conv
from clipself_d2.layers.deformable_attention import DeformableAttention
from clipself_d2.layers.positions import map_positions

# Levels that the queries read, the coarsest first.
NUM_QUERY_LEVELS = 3


class PixelDecoder(nn.Module):
    """A feature pyramid, with deformable attention over its coarse levels where wanted.

    Args:
        input_shape: Shape by name of the feature.
        in_features: Names of the features to read, fine to coarse, four or more.
        channels: C of all maps.
        norm: Norm of the convolutions, by Detectron2's name.
        attention_layers: Layers of deformable attention over the three coarsest levels; 0: none.
        num_heads: Heads of that attention.

    Raises:
        ValueError: If there are fewer than four features.

    Reference: the pixel decoders of MaskFormer, arXiv 2107.06278, section 4.1 (pyramid), and of
    Mask2Former, arXiv 2112.01527, section 3.1 (attention).
    """

    def __init__(
        self,
        *,
        input_shape: Mapping[str, ShapeSpec],
        in_features: Sequence[str],
        channels: int = 256,
        norm: str = "GN",
        attention_layers: int = 0,
        num_heads: int = 8,
    ) -> None:
        super().__init__()
        if len(in_features) <= NUM_QUERY_LEVELS:
            raise ValueError(
                f"the pixel decoder reads {len(in_features)} features; it takes four, of which "
                "the finest gives the masks"
            )
        self.in_features = tuple(in_features)
        self.channels = channels
        self.laterals, self.outputs = nn.ModuleList(), nn.ModuleList()
        for name in in_features:
            self.laterals.append(filled_conv(input_shape[name].channels, channels, 1, norm))
            self.outputs.append(filled_conv(channels, channels, 3, norm))
        self.mask_features = Conv2d(channels, channels, kernel_size=1)
        c2_xavier_fill(self.mask_features)
        self.encoder: nn.Module | None = None
        if attention_layers:
            self.encoder = DeformableEncoder(
                channels=channels,
                num_levels=NUM_QUERY_LEVELS,
                num_layers=attention_layers,
                num_heads=num_heads,
            )

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decode mask features (N, C, h, w) and three maps, the coarsest first."""
        maps = [
            lateral(features[name])
            for lateral, name in zip(self.laterals, self.in_features, strict=True)
        ]
        if self.encoder is not None:
            # Coarse to fine inside; what is finer joins by the pyramid alone.
            maps[-NUM_QUERY_LEVELS:] = self.encoder(maps[-NUM_QUERY_LEVELS:])
        merged, levels = maps[-1], []
        for number in reversed(range(len(maps))):
            if number < len(maps) - 1:
                merged = maps[number] + F.interpolate(
                    merged, maps[number].shape[-2:], mode="bilinear", align_corners=False
                )
            levels.append(self.outputs[number](merged).relu())
        return self.mask_features(levels[-1]), levels[:NUM_QUERY_LEVELS]


class DeformableEncoder(nn.Module):
    """Layers in which the cells of several maps attend to points of all of them.

    Args:
        channels: C.
        num_levels: Number of maps.
        num_layers: Number of layers.
        num_heads: Heads of attention.
        hidden: Channels inside of the feed-forward networks.

    Reference: Deformable DETR, arXiv 2010.04159, section 4.1, in Mask2Former's sizes.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_levels: int,
        num_layers: int = 6,
        num_heads: int = 8,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(num_levels, channels))
        self.layers = nn.ModuleList(
            _EncoderLayer(channels, num_levels, num_heads, hidden) for _ in range(num_layers)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Attend; maps (N, C, h, w) keep their shapes."""
        grids = [(level.shape[-2], level.shape[-1]) for level in maps]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        device, channels = tokens.device, tokens.shape[-1]
        positions = torch.cat(
            [
                map_positions(grid, channels, device, span=2 * math.pi) + embed
                for grid, embed in zip(grids, self.level_embed, strict=True)
            ]
        )
        places = torch.cat([_centres(grid, device) for grid in grids])
        for layer in self.layers:
            tokens = layer(tokens, positions, places, grids)
        pieces = tokens.transpose(1, 2).split([height * width for height, width in grids], dim=2)
        return [piece.unflatten(2, grid) for piece, grid in zip(pieces, grids, strict=True)]


class _EncoderLayer(nn.Module):
    """Deformable attention and a feed-forward network, each with a residual and a norm behind."""

    def __init__(self, channels: int, num_levels: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(
            channels=channels, num_levels=num_levels, num_heads=num_heads
        )
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(
        self, tokens: Tensor, positions: Tensor, places: Tensor, grids: Sequence[tuple[int, int]]
    ) -> Tensor:
        attended = self.attention(tokens + positions, places, tokens, grids)
        tokens = self.norm1(tokens + attended)
        output: Tensor = self.norm2(tokens + self.mlp(tokens))
        return output


def _centres(grid: Sequence[int], device: torch.device) -> Tensor:
    """X and y of the cells' centres in [0, 1], row by row."""
    rows, columns = ((torch.arange(side, device=device) + 0.5) / side for side in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
