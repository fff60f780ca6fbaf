"""Regions of pictures from a frozen proposal network."""

import torch
from torch import Tensor, nn

from clipself_d2.distillation.base import Item, iteration_generator
from clipself_d2.distillation.region_features import whole_frame


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
