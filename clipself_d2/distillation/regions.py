"""Regions of pictures: from a frozen proposal network, and their features by CLIPs of every kind.

Legend: N images, R regions, D joint embedding, C channels, h w cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from clipself_d2.clip import VisionTower
from clipself_d2.distillation.base import Item, iteration_generator


@dataclass(frozen=True)
class RegionFeatures:
    """What a tower makes of pictures, from which regions are pooled.

    Attributes:
        tower: The tower.
        maps: (N, C, h, w), its ``region_map`` of the pictures.
    """

    tower: VisionTower
    maps: Tensor

    @classmethod
    def extract(cls, tower: VisionTower, images: Tensor) -> "RegionFeatures":
        """Run a tower over whole pictures.

        Args:
            tower: ViT, ConvNeXt or ResNet.
            images: (N, 3, H, W) normalised pixels.

        Returns:
            The features.
        """
        return cls(tower, tower.region_map(images))

    def pool(self, boxes: Sequence[Tensor]) -> Tensor:
        """Embed regions.

        Args:
            boxes: One (Ri, 4) XYXY tensor in input pixels for each picture.

        Returns:
            (R, D) float32, not normalised, pictures in order. A ViT's dense map is averaged over
            each box. A ResNet's ``res4`` is cut to twice the grid of its attention pool, which its
            last stage halves, so that the pool's positions fit as they are.

        Reference: RegionCLIP, arXiv 2112.09106, section 3.1; for ViTs CLIPSelf, arXiv 2310.01403,
        section 3.2.
        """
        maps = self.maps.float()
        pooled = roi_align(
            maps,
            [box.to(maps) for box in boxes],
            self.tower.region_grid,
            spatial_scale=1.0 / self.tower.region_stride,
            sampling_ratio=-1,
            aligned=True,
        )
        return self.tower.embed_pooled(pooled)

    def dense(self) -> Tensor:
        """Embed every cell, of the tower's ``patch_size`` pixels.

        Returns:
            (N, D, h, w) float32, unit norm.
        """
        return self.tower.embed_cells(self.maps)


def whole_frame(image: Tensor) -> Tensor:
    """Make the box of a picture, without the padding of its batch.

    Args:
        image: (3, H, W).

    Returns:
        (1, 4) XYXY px.
    """
    height, width = image.shape[-2:]
    return torch.tensor([[0.0, 0.0, width, height]])


class RegionProposer(nn.Module):
    """Draws regions from what a proposal network finds, anew in every iteration.

    Args:
        network: Frozen; from pictures to Detectron2's Instances with ``proposal_boxes``.
        max_regions: Most regions of a picture.
        crop_enlarge: Factor by which the teacher's crop of a region exceeds it; None cuts no crops.
        seed: Seed of the draw, which also depends on the iteration and the picture's ``count`` in
            the run, as a loader of ``data.counted`` gives it, and on nothing else.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        max_regions: int = 100,
        crop_enlarge: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.max_regions, self.crop_enlarge, self.seed = max_regions, crop_enlarge, seed

    def forward(self, items: list[Item]) -> list[Item]:
        """Add regions.

        Args:
            items: Items with ``image`` (3, H, W).

        Returns:
            Copies with ``boxes`` (Ri, 4) XYXY px, the whole picture where nothing is found, and
            with ``crops`` where they are asked for.
        """
        found = self.network([item["image"] for item in items])
        return [
            self._draw(item, instances.proposal_boxes.tensor)
            for item, instances in zip(items, found, strict=True)
        ]

    def _draw(self, item: Item, boxes: Tensor) -> Item:
        image: Tensor = item["image"]  # type: ignore[assignment]
        count: int = item.get("count", 0)  # type: ignore[assignment]
        generator = iteration_generator(self.seed, count)
        drawn = torch.randperm(len(boxes), generator=generator)[: self.max_regions]
        # Drawn on the CPU, so that a seed gives the same regions on every device.
        kept = boxes[drawn.to(boxes.device)]
        if not len(boxes):
            kept = whole_frame(image).to(boxes.device)
        made = {**item, "boxes": kept}
        if self.crop_enlarge is not None:
            made["crops"] = _cut(image, kept, self.crop_enlarge)
        return made


def _cut(image: Tensor, boxes: Tensor, enlarge: float) -> list[Tensor]:
    """Cut enlarged boxes out of a picture; each piece has at least one pixel."""
    height, width = image.shape[-2:]
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * enlarge / 2
    pieces = []
    enlarged = torch.cat([center - half, center + half], dim=1)
    for left, top, right, bottom in enlarged.round().int().tolist():
        left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        pieces.append(image[:, top:bottom, left:right])
    return pieces
