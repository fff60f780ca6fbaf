"""Anchors that are made once for each size of the maps."""

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor


class HeldAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors, held while maps keep their sizes.

    Detectron2 makes them in every step, by a dozen small operations a level and two copies to a GPU
    for which the processor waits.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self._held: tuple[object, list[Tensor]] = (None, [])

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """Give the anchors of every map, as the parent does."""
        # A trace needs its own, of sizes that may vary.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            return list(super().forward(features))
        mode = torch.is_inference_mode_enabled()
        key = (features[0].device, mode, *(level.shape[-2:] for level in features))
        if self._held[0] != key:
            self._held = (key, [boxes.tensor for boxes in super().forward(features)])
        return [Boxes(boxes) for boxes in self._held[1]]
