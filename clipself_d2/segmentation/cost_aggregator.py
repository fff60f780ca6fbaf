"""Cost aggregation: from cosines of cells and words to logits on a grid four times as fine.

Legend: N images, T classes, M classes of the shortlist, D joint embedding, h w grid of the tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.segmentation.class_attention import ClassAggregation
from clipself_d2.segmentation.spatial import SpatialAggregation

# Logit of a class that is not on the shortlist.
_LEFT_OUT = -100.0

# Channels of a group of the group norms.
_GROUP = 16
_NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class AggregatorSizes:
    """Sizes of a ``CostAggregator``; the defaults are the published ones.

    Attributes:
        dim: Width of the cost embedding.
        num_layers: Layers of spatial and class aggregation.
        num_heads: Heads of both attentions.
        window_size: Side of the windows of the spatial attention, cells.
        pooling: Side of the squares averaged before the class attention in training.
        list_length: Most classes that are aggregated at once; shorter lists are filled up.
        appearance_dim: Channels of the projected dense map.
        text_dim: Channels of the projected text embeddings.
        decoder_dims: Channels behind the two upsamplings.
        guide_dims: Channels of their projected guides.
    """

    dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    window_size: int = 12
    pooling: int = 2
    list_length: int = 256
    appearance_dim: int = 128
    text_dim: int = 128
    decoder_dims: tuple[int, int] = (64, 32)
    guide_dims: tuple[int, int] = (32, 16)


class CostAggregator(nn.Module):
    """Aggregates the cost volume over space and classes, and decodes it.

    Args:
        embed_dim: Width D of the joint embedding.
        guide_dims: Channels of the two finer maps of the tower that guide the decoder.
        sizes: Sizes inside.

    Reference: CAT-Seg, arXiv 2303.11797, section 3, in the released form. Differs: windows and
    pooling take any grid, and the copies that fill up a short list are computed once.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        guide_dims: Sequence[int] = (256, 128),
        sizes: AggregatorSizes | None = None,
    ) -> None:
        super().__init__()
        sizes = sizes or AggregatorSizes()
        self.list_length, self.guide_dims = sizes.list_length, tuple(guide_dims)
        self.embed = nn.Conv2d(1, sizes.dim, kernel_size=7, padding=3)
        self.appearance = _projection(embed_dim, sizes.appearance_dim)
        self.text = nn.Sequential(nn.Linear(embed_dim, sizes.text_dim), nn.ReLU())
        self.guides = nn.ModuleList(
            _projection(*pair) for pair in zip(guide_dims, sizes.guide_dims, strict=True)
        )
        self.spatial = nn.ModuleList(
            SpatialAggregation(
                dim=sizes.dim,
                guide_dim=sizes.appearance_dim,
                num_heads=sizes.num_heads,
                window_size=sizes.window_size,
            )
            for _ in range(sizes.num_layers)
        )
        self.classes = nn.ModuleList(
            ClassAggregation(
                dim=sizes.dim,
                guide_dim=sizes.text_dim,
                num_heads=sizes.num_heads,
                list_length=sizes.list_length,
                pooling=sizes.pooling,
            )
            for _ in range(sizes.num_layers)
        )
        dims = (sizes.dim, *sizes.decoder_dims)
        self.decoders = nn.ModuleList(
            GuidedUpsampling(in_dim=before, out_dim=after, guide_dim=guide)
            for before, after, guide in zip(dims[:-1], dims[1:], sizes.guide_dims, strict=True)
        )
        self.head = nn.Conv2d(dims[-1], 1, kernel_size=3, padding=1)

    def forward(
        self,
        dense: Tensor,
        guides: Sequence[Tensor],
        text_TD: Tensor,
        *,
        shortlist: int = 0,
        pooling: int | None = None,
    ) -> Tensor:
        """Score every cell of the fine grid for every class.

        Args:
            dense: (N, D, h, w) dense map of the tower, any norm.
            guides: (N, D, h, w), the dense map as the projection gives it, not normalised;
                (N, C, 2h, 2w) and (N, C', 4h, 4w), finer maps.
            text_TD: (T, D) class embeddings, any norm.
            shortlist: Most classes that are aggregated, those of the highest maximal cosine; 0
                takes ``list_length``. A list at least as long as T leaves nothing out.
            pooling: Side of the squares averaged before the class attention; None takes training's.

        Returns:
            (N, T, 4h, 4w) logits; -100 for a class that an image's shortlist left out.
        """
        logits, chosen = self.score_likeliest(
            dense, guides, text_TD, shortlist=shortlist, pooling=pooling
        )
        if chosen is None:
            return logits
        return place_listed(logits, chosen, len(text_TD))

    def longest_list(self, shortlist: int = 0) -> int:
        """Tell how many classes are aggregated at most, 0 for no shortlist."""
        return min(shortlist or _NO_LIMIT, self.list_length or _NO_LIMIT)

    def score_likeliest(
        self,
        dense: Tensor,
        guides: Sequence[Tensor],
        text_TD: Tensor,
        *,
        shortlist: int = 0,
        pooling: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score the classes that are not left out; arguments are those of ``forward``.

        (N, L, 4h, 4w) logits, and for each image the (L,) numbers of its classes; None where they
        are all T in their order.
        """
        with torch.autocast(dense.device.type, enabled=False):
            text = F.normalize(text_TD.float(), dim=-1)
            cost = torch.einsum("ndhw,td->nthw", F.normalize(dense.float(), dim=1), text)
        num_classes = text_TD.shape[0]
        length = self.longest_list(shortlist)
        text_guide = self.text(text).expand(dense.shape[0], -1, -1)
        chosen = None
        if length < num_classes:
            chosen = cost.flatten(2).amax(dim=-1).topk(length, dim=1).indices
            rows = torch.arange(cost.shape[0], device=cost.device)[:, None]
            cost, text_guide = cost[rows, chosen], text_guide[rows, chosen]
        return self._aggregate(cost, text_guide, guides, pooling), chosen

    def _aggregate(
        self,
        cost: Tensor,
        text_guide: Tensor,
        guides: Sequence[Tensor],
        pooling: int | None,
    ) -> Tensor:
        count, num_classes = cost.shape[:2]
        appearance = self.appearance(guides[0]).repeat_interleave(num_classes, dim=0)
        volume = self.embed(cost.flatten(0, 1)[:, None]).unflatten(0, (count, num_classes))
        for spatial, classes in zip(self.spatial, self.classes, strict=True):
            mixed = spatial(volume.flatten(0, 1), appearance)
            volume = classes(mixed.unflatten(0, (count, num_classes)), text_guide, pooling)
        for decoder, project, guide in zip(self.decoders, self.guides, guides[1:], strict=True):
            volume = decoder(volume, project(guide))
        logits: Tensor = self.head(volume.flatten(0, 1))
        return logits.unflatten(0, (count, num_classes))[:, :, 0]


def place_listed(logits: Tensor, chosen: Tensor, num_classes: int) -> Tensor:
    """Put the logits (N, L, h, w) of lists (N, L) among all classes, -100 for those not on one."""
    full = logits.new_full((len(logits), num_classes, *logits.shape[-2:]), _LEFT_OUT)
    return full.scatter(1, chosen[:, :, None, None].expand_as(logits), logits)


def _projection(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_dim, out_dim, kernel_size=3, padding=1), nn.ReLU())


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
