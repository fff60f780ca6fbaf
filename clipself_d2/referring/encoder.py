"""The three image levels that CRIS's neck reads, from a CLIP ResNet or ViT.

Legend: N images, C channels, D joint embedding, h w grid of the middle level.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.clip.towers.resnet import DenseAttentionPool, ResNetTower
from clipself_d2.referring.norms import norm_maker

# Blocks of a ViT whose outputs are the levels 3 and 4: after one third and two thirds.
_TAP_SHARES = (1 / 3, 2 / 3)


class _Levels(nn.Module):
    """A tower that stays in eval mode while it is frozen."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.trainable = tower.trained_blocks != 0

    def train(self, mode: bool = True) -> "_Levels":
        super().train(mode)
        self.tower.train(mode and self.trainable)
        return self


class ResNetLevels(_Levels):
    """Stages 3 and 4 of a CLIP ResNet, and its densely pooled last stage.

    Args:
        tower: Image tower. What of it is trained is set already; a frozen one stays in eval mode.
        norm: Norm of the branch beside the attention pool, and of the tower in training: BN or
            SyncBN. With GN the tower's batch norms keep their stored statistics.

    Attributes:
        channels: Channels of the three levels.
        divisor: Sides of an image are multiples of this, px.

    Reference: Wang et al., CRIS, arXiv 2111.15174, section 3.1.
    """

    tower: ResNetTower

    def __init__(self, *, tower: ResNetTower, norm: str = "SyncBN") -> None:
        super().__init__(tower)
        width = tower.channels["res5"]
        self.pool = DenseAttentionPool(width, tower.embed_dim, norm_maker(norm))
        tower.set_norm("FrozenBN" if norm == "GN" else norm)
        self.channels = (tower.channels["res3"], tower.channels["res4"], tower.embed_dim)
        self.divisor = 32
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute maps of strides 8, 16 and 32; the last has D channels."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            stages = self.tower.forward_stages(images)
            attended = self.tower.pool_dense(stages["res5"])
        return stages["res3"], stages["res4"], self.pool(stages["res5"], attended)


class ViTLevels(_Levels):
    """Two blocks and the dense embedding of a CLIP ViT, all on its patch grid.

    ``ViTResampling`` brings them to the grids of the neck.

    Args:
        tower: Image tower. What of it is trained is set already; a frozen one stays in eval mode.
        tap_blocks: 0-based numbers of an early and a middle block; empty takes those after one and
            two thirds of the tower.

    Attributes:
        channels: Channels of the three maps.
        divisor: Sides of an image are multiples of this, px.

    Raises:
        ValueError: If the blocks are not two.

    Reference: none published; CLIPSelf's dense map (arXiv 2310.01403) in the place of CRIS's
    densely pooled stage.
    """

    def __init__(self, *, tower: VisionTower, tap_blocks: Sequence[int] = ()) -> None:
        super().__init__(tower)
        if len(tap_blocks) not in (0, 2):
            raise ValueError(
                f"MODEL.CLIP.TAP_BLOCKS is {list(tap_blocks)}; CRIS reads two blocks, an early "
                "and a middle one, or [] for one and two thirds of the tower"
            )
        thirds = [max(0, round(share * tower.num_blocks) - 1) for share in _TAP_SHARES]
        self.tap_blocks = tuple(tap_blocks) or tuple(thirds)
        self.channels = (tower.width, tower.width, tower.embed_dim)
        # Level 5 is the patch grid halved.
        self.divisor = 2 * tower.patch_size
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute (N, C, h, w) of the early and the middle block, and (N, D, h, w).

        The dense embedding has norm sqrt(D) in every cell, so that a channel is about 1 as batch
        norm expects.
        """
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            dense = self.tower.forward_dense(images, self.tap_blocks)
        early, middle = dense.blocks
        return early, middle, dense.embedding * math.sqrt(self.tower.embed_dim)


class ViTResampling(nn.Module):
    """Brings three maps of one grid to grids in the ratio 4 : 2 : 1.

    The early block, of ``early_dim`` channels, is doubled by a transposed convolution, the dense
    embedding halved by averaging.
    """

    def __init__(self, early_dim: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(early_dim, early_dim, kernel_size=2, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Resample, h and w even: (N, C, 2h, 2w), (N, C, h, w) and (N, D, h / 2, w / 2)."""
        early, middle, dense = maps
        return self.enlarge(early), middle, F.avg_pool2d(dense, 2)
