"""Region features of CLIP towers of every kind, from one pass over the pictures.

Legend: N images, R regions, D joint embedding, C channels, h w cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from clipself_d2.clip import VisionTower


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
