"""Large pictures in overlapping slices, and the detections of all of them as one.

Legend: R detections, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import batched_nms

# Boxes of one class that overlap more than this are one object.
_SAME_OBJECT = 0.5
# A box that comes so close to the inner border of a slice, px, is cut by it.
_CUT = 1.5


@dataclass(frozen=True)
class SlicePlan:
    """How large pictures are cut.

    Attributes:
        size: Side of a slice, px.
        overlap: Share of a slice that its neighbour has too, in [0, 1). Objects up to this size are
            whole in one slice; larger ones are found in the whole picture.
    """

    size: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.size < 1 or not 0.0 <= self.overlap < 1.0:
            raise ValueError(
                f"slices of {self.size} px with an overlap of {self.overlap}; the size must be "
                "positive and the overlap at least 0 and below 1"
            )

    def cut(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Place slices that cover the picture, XYXY px; a single one is the picture."""
        return [
            (left, top, min(left + self.size, width), min(top + self.size, height))
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def _starts(self, side: int) -> list[int]:
        if side <= self.size:
            return [0]
        step = max(1, round(self.size * (1 - self.overlap)))
        count = -(-(side - self.size) // step) + 1
        # Spread evenly from edge to edge, so that slices overlap rather more than asked for.
        return np.linspace(0, side - self.size, count).round().astype(int).tolist()


def merge_slices(
    whole: Instances, parts: Sequence[Instances], slices: Sequence[tuple[int, int, int, int]]
) -> Instances:
    """Join what was found in a picture and in its slices (XYXY px), in pixels of the picture.

    Boxes that the inner border of a slice cuts are left out: the neighbour, or the whole picture,
    has the object. Of boxes of one class on one object the best is kept; the best come first.
    """
    height, width = whole.image_size
    found = [whole]
    for part, (left, top, right, bottom) in zip(parts, slices, strict=True):
        boxes = part.pred_boxes.tensor
        high, wide = part.image_size
        # (R, 4) distances to the slice's four sides, and which of these lie inside of the picture.
        near = torch.stack([boxes[:, 0], boxes[:, 1], wide - boxes[:, 2], high - boxes[:, 3]], 1)
        inner = torch.tensor([left > 0, top > 0, right < width, bottom < height])
        found.append(part[~((near < _CUT) & inner.to(boxes.device)).any(1)])
    offsets = [(0, 0), *(place[:2] for place in slices)]
    boxes = torch.cat(
        [
            item.pred_boxes.tensor + item.pred_boxes.tensor.new_tensor([*offset, *offset])
            for item, offset in zip(found, offsets, strict=True)
        ]
    )
    fields = {
        name: torch.cat([item.get(name) for item in found])
        for name in whole.get_fields()
        if name not in ("pred_boxes", "pred_masks")
    }
    kept = batched_nms(boxes, fields["scores"], fields["pred_classes"], _SAME_OBJECT)
    merged = Instances(whole.image_size, pred_boxes=Boxes(boxes[kept]))
    for name, rows in fields.items():
        merged.set(name, rows[kept])
    if whole.has("pred_masks"):
        merged.pred_masks = _paste(found, offsets, kept, (height, width))
    return merged


def _paste(
    found: Sequence[Instances],
    offsets: Sequence[tuple[int, int]],
    kept: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """(R, H, W) masks of what is kept alone: those of all slices would not fit in memory."""
    places = [(item, row) for item in range(len(found)) for row in range(len(found[item]))]
    masks = found[0].pred_masks.new_zeros(len(kept), *size)
    for target, number in enumerate(kept.tolist()):
        item, row = places[number]
        (left, top), mask = offsets[item], found[item].pred_masks[row]
        masks[target, top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return masks
