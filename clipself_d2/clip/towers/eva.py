"""Tower over timm's EVA trunk: EVA01, EVA02 and PE-Core.

Legend: N images, D joint embedding, h w patch grid, E channels of a head.
"""

import torch
from timm.layers import RotaryEmbeddingCat
from torch import Tensor

from clipself_d2.clip.towers.positions import rotary_table
from clipself_d2.clip.towers.timm_vit import TimmViTTower


class EvaTower(TimmViTTower):
    """Tower of ``open_clip.timm_model.TimmModel`` around ``timm.models.eva.Eva``.

    A ValueError says that the trunk rotates in another way than by a table of axes.
    """

    def read_visual(self) -> None:
        """Read what ``TimmViTTower`` reads, and check the rotary positions."""
        super().read_visual()
        rope = self.visual.trunk.rope
        axial = type(rope) is RotaryEmbeddingCat and not rope.in_pixels and not rope.rotate_half
        if rope is not None and not axial:
            raise ValueError(
                f"{self.name} has rotary positions of type {type(rope).__name__}; use EVA02-B-16"
            )

    def rotary(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Build the rotary positions (h * w, 2E) of a grid, or None for a trunk without them."""
        rope = self.visual.trunk.rope
        if rope is None:
            return None
        return rotary_table(
            grid,
            head_dim=rope.dim,
            temperature=rope.temperature,
            reference=tuple(rope.ref_feat_shape or self.native),
            device=device,
            offset=rope.grid_offset,
            indexing=rope.grid_indexing,
        )
