"""Region features of CLIP towers of either kind: dense maps of ViTs, C4 features of ResNets.

Legend: N images, R regions, D joint embedding, C channels, h w cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from clipself_d2.clip import VisionTower
from clipself_d2.clip.towers.resnet import STAGE_STRIDES, ResNetTower
from clipself_d2.layers import roi_embeddings

Tower = VisionTower | ResNetTower
# Regions of a ResNet that pass its last stage at once.
REGION_BATCH = 512
MAX_FREEZE_AT = 5


@dataclass(frozen=True)
class RegionFeatures:
    """What a tower makes of pictures, from which regions are pooled.

    Attributes:
        tower: The tower.
        maps: (N, D, h, w) dense embeddings of a ViT, or (N, C, h, w) of a ResNet's ``res4``.
    """

    tower: Tower
    maps: Tensor

    @classmethod
    def extract(cls, tower: Tower, images: Tensor) -> "RegionFeatures":
        """Run a tower over whole pictures.

        Args:
            tower: ViT or ResNet.
            images: (N, 3, H, W) normalised pixels.

        Returns:
            The features.
        """
        if isinstance(tower, ResNetTower):
            return cls(tower, tower.forward_stages(images, last="res4")["res4"])
        return cls(tower, tower.forward_dense(images).embedding)

    def pool(self, boxes: Sequence[Tensor]) -> Tensor:
        """Embed regions.

        Args:
            boxes: One (Ri, 4) XYXY tensor in input pixels for each picture.

        Returns:
            (R, D) float32, not normalised, pictures in order. A ViT's dense map is averaged over
            each box. A ResNet's ``res4`` is cut to twice the grid of its attention pool, 14 x 14
            for RN50 and 18 x 18 for RN50x4, which its last stage halves, so that the pool's
            positions fit as they are.

        Reference: RegionCLIP, arXiv 2112.09106, section 3.1; for ViTs CLIPSelf, arXiv 2310.01403,
        section 3.2.
        """
        tower = self.tower
        if not isinstance(tower, ResNetTower):
            return roi_embeddings(self.maps, boxes, tower.patch_size, normalize=False)
        stride = STAGE_STRIDES["res4"]
        rois = roi_align(
            self.maps,
            [box.to(self.maps) for box in boxes],
            tower.image_size // stride,
            spatial_scale=1.0 / stride,
            sampling_ratio=-1,
            aligned=True,
        )
        parts = [tower.pool(tower.forward_res5(part)) for part in rois.split(REGION_BATCH)]
        return torch.cat(parts)

    def dense(self) -> Tensor:
        """Embed every cell, of ``patch_size`` pixels.

        Returns:
            (N, D, h, w) float32, unit norm; of a ResNet by its attention pool with every cell as a
            query.
        """
        if not isinstance(self.tower, ResNetTower):
            return self.maps
        return F.normalize(self.tower.pool_dense(self.tower.forward_res5(self.maps)), dim=1)


def freeze_stages(tower: ResNetTower, freeze_at: int) -> None:
    """Choose what of a ResNet is trained: all but its first stages and its norms.

    Args:
        tower: The tower; all its norms keep their statistics and weights.
        freeze_at: 0 trains all, 1 freezes the stem, 2 the first stage too, and so on, as
            MODEL.BACKBONE.FREEZE_AT of Detectron2.

    Raises:
        ValueError: If the number is out of range.
    """
    if not 0 <= freeze_at <= MAX_FREEZE_AT:
        raise ValueError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; expected 0 to {MAX_FREEZE_AT}")
    tower.requires_grad_(True)
    tower.set_norm("FrozenBN")
    stages = [[tower.visual.conv1, tower.visual.conv2, tower.visual.conv3]]
    stages += [[getattr(tower.visual, f"layer{number}")] for number in range(1, MAX_FREEZE_AT)]
    for modules in stages[:freeze_at]:
        for module in modules:
            module.requires_grad_(False)
