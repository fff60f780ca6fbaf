"""Multi-scale deformable attention by ``grid_sample``, without a compiled operator.

Legend: N images, T tokens of all levels, Q queries, C channels, M heads, L levels, P points.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Every query reads a few points of every level, at places that it computes itself.

    Args:
        channels: C, a multiple of ``num_heads``.
        num_levels: L.
        num_heads: M.
        num_points: P points of a head in a level.

    Raises:
        ValueError: If the heads do not divide the channels.

    Reference: Deformable DETR, arXiv 2010.04159, Eq. 3 and appendix A.4 (start values). Levels are
    summed one after another, so that the memory is that of one level.
    """

    def __init__(
        self, *, channels: int, num_levels: int, num_heads: int = 8, num_points: int = 4
    ) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        count = num_heads * num_levels * num_points
        self.offsets = nn.Linear(channels, 2 * count)
        self.weights = nn.Linear(channels, count)
        self.values = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self._reset()

    def _reset(self) -> None:
        """Heads look in as many directions, points one cell further each, all equally much."""
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle_M = torch.arange(self.num_heads) * (2.0 * math.pi / self.num_heads)
        way_M2 = torch.stack([angle_M.cos(), angle_M.sin()], dim=1)
        # Onto the square around the query, so that the first points are whole cells away.
        way_M2 = way_M2 / way_M2.abs().amax(dim=1, keepdim=True)
        steps_P = torch.arange(1, self.num_points + 1)
        start = way_M2[:, None, None] * steps_P[:, None]
        start = start.expand(-1, self.num_levels, -1, -1)
        self.offsets.bias.data = start.flatten().clone()
        for layer in (self.values, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query_NQC: Tensor,
        places_Q2: Tensor,
        tokens_NTC: Tensor,
        grids: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend: (N, Q, C).

        Queries have their positions in them, and places are x and y in [0, 1] of the map;
        ``tokens_NTC`` are the levels, flattened row by row, one after another, of (h, w) in
        ``grids``.
        """
        count, num_queries, channels = query_NQC.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        shape = (count, num_queries, heads, levels, points)
        offsets = self.offsets(query_NQC).view(*shape, 2)
        weights = self.weights(query_NQC).view(count, num_queries, heads, -1).softmax(-1)
        # One softmax over the points of all levels; then (L, N * M, Q, P).
        weights = weights.view(shape).permute(3, 0, 2, 1, 4).flatten(1, 2)
        values = self.values(tokens_NTC).view(count, -1, heads, channels // heads)
        values = values.permute(0, 2, 3, 1).flatten(0, 1)  # (N * M, C / M, T)
        sums = torch.zeros_like(values[..., :1]).expand(-1, -1, num_queries)
        sizes = [height * width for height, width in grids]
        for level, value in enumerate(values.split(sizes, dim=2)):
            height, width = grids[level]
            # Offsets are in cells, places in shares of the map.
            scale = offsets.new_tensor([width, height])
            places = places_Q2[None, :, None, None] + offsets[:, :, :, level] / scale
            places = places.permute(0, 2, 1, 3, 4).flatten(0, 1)
            sampled = F.grid_sample(
                value.reshape(*value.shape[:2], height, width), 2 * places - 1, align_corners=False
            )
            # (N * M, C / M, Q, P), weighted and summed over the points.
            sums = sums + (sampled * weights[level][:, None]).sum(-1)
        merged = sums.reshape(count, channels, num_queries).transpose(1, 2)
        output: Tensor = self.output(merged)
        return output
