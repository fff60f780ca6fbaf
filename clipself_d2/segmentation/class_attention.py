"""Class aggregation: linear attention over the classes of each cell.

Legend: N images, T classes, C width, G guide channels, h w grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MLP_RATIO = 4
_EPS = 1e-6


class ClassAggregation(nn.Module):
    """Attention over classes whose cost grows with their number, not with its square.

    Lists shorter than ``list_length`` are filled up with copies of one learned class. The copies
    are alike, so that one of them with a weight stands for all: the cost is that of the classes.

    Args:
        dim: Width C of the cost embedding.
        guide_dim: Channels G of the text guide.
        num_heads: Attention heads.
        list_length: Number of classes up to which a list is filled; 0 fills none.
        pooling: Side of the squares of cells that are averaged before the attention in training.

    Reference: CAT-Seg, arXiv 2303.11797, section 3.4; linear attention, arXiv 2006.16236.
    """

    def __init__(
        self, *, dim: int, guide_dim: int, num_heads: int, list_length: int, pooling: int
    ) -> None:
        super().__init__()
        self.num_heads, self.list_length, self.pooling = num_heads, list_length, pooling
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim + guide_dim, dim)
        self.key = nn.Linear(dim + guide_dim, dim)
        self.value = nn.Linear(dim, dim)
        hidden = _MLP_RATIO * dim
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        if list_length:
            self.padding_cost = nn.Parameter(torch.zeros(1, 1, dim))
            self.padding_guide = nn.Parameter(torch.zeros(1, 1, guide_dim))

    def forward(self, cost: Tensor, guide: Tensor, pooling: int | None = None) -> Tensor:
        """Aggregate (N, T, C, h, w) by a guide (N, T, G) over squares of ``pooling`` cells."""
        count, num_classes, dim, height, width = cost.shape
        pooling = self.pooling if pooling is None else pooling
        pooled = cost.flatten(0, 1)
        if pooling > 1:
            pooled = F.avg_pool2d(pooled, pooling, ceil_mode=True)
        grid = pooled.shape[-2:]
        rows = pooled.reshape(count, num_classes, dim, -1).permute(0, 3, 1, 2)
        missing = max(self.list_length - num_classes, 0)
        if missing:
            copies = self.padding_cost.expand(*rows.shape[:2], 1, -1).to(rows.dtype)
            rows = torch.cat([rows, copies], dim=2)
            guide = torch.cat([guide, self.padding_guide.expand(count, -1, -1).to(guide.dtype)], 1)
        rows = rows + self._attend(self.norm1(rows), guide, missing)
        rows = rows + self.mlp(self.norm2(rows))
        rows = rows[:, :, :num_classes].permute(0, 2, 3, 1).reshape(-1, dim, *grid)
        if tuple(grid) != (height, width):
            rows = F.interpolate(rows, (height, width), mode="bilinear", align_corners=True)
        return cost + rows.reshape(cost.shape)

    def _attend(self, rows: Tensor, guide: Tensor, missing: int) -> Tensor:
        """(N, cells, T, C); the last of T stands for ``missing`` copies where there are some."""
        guides = guide[:, None].expand(-1, rows.shape[1], -1, -1).to(rows.dtype)
        guided = torch.cat([rows, guides], dim=-1)
        query, key, value = self.query(guided), self.key(guided), self.value(rows)
        # Sums over hundreds of classes overflow or lose what is small in half precision.
        with torch.autocast(rows.device.type, enabled=False):
            shape = (*rows.shape[:3], self.num_heads, -1)
            query, key, value = (
                part.float().reshape(shape).transpose(2, 3) for part in (query, key, value)
            )
            # The kernel of linear attention: positive, so that totals are above 0.
            query, key = F.elu(query) + 1, F.elu(key) + 1
            if missing:
                weight = key.new_ones(key.shape[-2])
                weight[-1] = missing
                key = key * weight[:, None]
            mixed = query @ (key.transpose(-1, -2) @ value)
            total = query @ key.sum(dim=-2).unsqueeze(-1) + _EPS
            return (mixed / total).transpose(2, 3).flatten(3)
