"""Queries that look where their own masks are: Mask2Former's transformer, with classes as text.

Legend: N images, Q queries, C channels, D joint embedding, h w cells.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.layers.positions import map_positions
from clipself_d2.segmentation.pixel_decoder import NUM_QUERY_LEVELS


@dataclass(frozen=True)
class MaskPrediction:
    """What one layer of the decoder says.

    Attributes:
        embedding: (N, Q, D) of every mask, to be compared with words; any norm.
        masks: (N, Q, h, w) logits on the grid of the mask features.
    """

    embedding: Tensor
    masks: Tensor


class MaskedAttentionDecoder(nn.Module):
    """Layers of masked cross attention, self attention and a feed-forward network.

    Layer i reads level i mod 3, the coarsest first; a query attends to the cells inside of the mask
    that it predicted before. A query's embedding for words is made of its own vector and of the
    mean of the mask features inside of its mask.

    Args:
        channels: C of queries and maps.
        embed_dim: D.
        num_queries: Q.
        num_layers: Layers; the predictions are one more.
        num_heads: Heads of attention.
        hidden: Channels inside of the feed-forward networks.

    Reference: Mask2Former, arXiv 2112.01527, section 3.2; the embedding, FC-CLIP, arXiv 2308.02487,
    section 3.4.
    """

    def __init__(
        self,
        *,
        channels: int = 256,
        embed_dim: int,
        num_queries: int = 250,
        num_layers: int = 9,
        num_heads: int = 8,
        hidden: int = 2048,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_content = nn.Embedding(num_queries, channels)
        self.query_position = nn.Embedding(num_queries, channels)
        self.level_embed = nn.Embedding(NUM_QUERY_LEVELS, channels)
        self.layers = nn.ModuleList(
            _DecoderLayer(channels, num_heads, hidden) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.mask_head = _mlp(channels, channels, channels)
        self.pooled = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))
        self.class_head = _mlp(channels, channels, embed_dim)

    def forward(self, mask_features: Tensor, levels: Sequence[Tensor]) -> list[MaskPrediction]:
        """Predict masks before the first layer, and behind every layer.

        Mask features are (N, C, h, w), levels three maps of C channels, the coarsest first.
        """
        count = len(mask_features)
        tokens, positions = [], []
        for level, embed in zip(levels, self.level_embed.weight, strict=True):
            grid = (level.shape[-2], level.shape[-1])
            table = map_positions(grid, level.shape[1], level.device, span=2 * math.pi)
            tokens.append(level.flatten(2).transpose(1, 2) + embed)
            positions.append(table)
        query = self.query_content.weight.expand(count, -1, -1)
        place = self.query_position.weight
        predictions = [self._predict(query, mask_features)]
        for number, layer in enumerate(self.layers):
            index = number % NUM_QUERY_LEVELS
            blocked = self._blocked(predictions[-1].masks, levels[index].shape[-2:])
            query = layer(query, place, tokens[index], positions[index], blocked)
            predictions.append(self._predict(query, mask_features))
        return predictions

    def _predict(self, query: Tensor, mask_features: Tensor) -> MaskPrediction:
        normed = self.norm(query)
        masks = torch.einsum("nqc,nchw->nqhw", self.mask_head(normed), mask_features)
        # Where the mask is says nothing about its class, so no gradient goes this way.
        inside = (masks.detach() > 0).to(mask_features.dtype)
        total = torch.einsum("nqhw,nchw->nqc", inside, mask_features)
        mean = total / inside.flatten(2).sum(-1).clamp(min=1)[..., None]
        return MaskPrediction(self.class_head(self.pooled(mean) + normed), masks)

    def _blocked(self, masks: Tensor, grid: Sequence[int]) -> Tensor:
        """(N * heads, Q, cells) bool: where a query may not look."""
        resized = F.interpolate(masks.detach(), tuple(grid), mode="bilinear", align_corners=False)
        blocked = resized.flatten(2) < 0
        # A query without a cell would attend to nothing, which is NaN: it looks everywhere.
        blocked = blocked & ~blocked.all(-1, keepdim=True)
        return blocked.repeat_interleave(self.num_heads, dim=0)


class _DecoderLayer(nn.Module):
    """Three parts, each with a residual and a norm behind; positions are added to q and k."""

    def __init__(self, channels: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.cross = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.own = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(
        self, query: Tensor, place: Tensor, tokens: Tensor, positions: Tensor, blocked: Tensor
    ) -> Tensor:
        seen, _ = self.cross(
            query + place, tokens + positions, tokens, attn_mask=blocked, need_weights=False
        )
        query = self.norm1(query + seen)
        placed = query + place
        told, _ = self.own(placed, placed, query, need_weights=False)
        query = self.norm2(query + told)
        output: Tensor = self.norm3(query + self.mlp(query))
        return output


def _mlp(channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, out_channels),
    )
