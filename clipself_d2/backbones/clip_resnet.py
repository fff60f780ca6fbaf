"""CLIP's ResNets as Detectron2 backbones: one map for C4 detectors, or a feature pyramid.

Legend: N images, H W pixels.
"""

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import Tensor

from clipself_d2.clip.towers.resnet import STAGE_STRIDES, STAGES, ResNetTower
from clipself_d2.parts.image_tower import build_image_tower


class ClipResNet(Backbone):
    """The stages of a CLIP ResNet with frozen batch norms.

    The tower comes with its last stage and its attention pool even where the map of ``res4`` is all
    that is returned: ``CLIPRes5ROIHeads`` runs them on regions. Norms keep their statistics, in
    training too; a checkpoint without them leaves them as they are.

    Args:
        tower: Image tower. What of it is trained is set here.
        out_features: Stages to return, among res2 to res5.
        trainable_blocks: Number of last stages that are trained: 0 none, 3 all but the stem and
            res2, -1 the whole tower.
        train_pool: Whether the attention pool is trained from the start; ``CLIPRes5ROIHeads`` sets
            it to be.

    Raises:
        ValueError: If a stage is unknown, or there are fewer.

    Reference: the backbone of RegionCLIP, arXiv 2112.09106, section 4.1.
    """

    @configurable
    def __init__(
        self,
        *,
        tower: ResNetTower,
        out_features: Sequence[str] = ("res4",),
        trainable_blocks: int = 0,
        train_pool: bool = True,
    ) -> None:
        super().__init__()
        unknown = [name for name in out_features if name not in STAGES]
        if unknown or not out_features:
            raise ValueError(
                f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)}; it names some of "
                f"{', '.join(STAGES)}"
            )
        self.tower = tower
        self._out_features = sorted(out_features, key=STAGES.index)
        self._out_feature_channels = {name: tower.channels[name] for name in self._out_features}
        self._out_feature_strides = {name: STAGE_STRIDES[name] for name in self._out_features}
        tower.freeze(trainable_blocks, behind=train_pool)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.RESNETS.OUT_FEATURES, and MODEL.CLIP by ``build_image_tower``.

        A ValueError says that the CLIP is no ResNet, or that images are BGR.
        """
        tower = build_image_tower(cfg, reads_embedding=False)
        if not isinstance(tower, ResNetTower):
            raise ValueError(
                f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} needs a CLIP ResNet, but "
                f"MODEL.CLIP.NAME {tower.name} is none; set it to RN50-quickgelu or take "
                "build_clip_vit_fpn_backbone"
            )
        return {
            "tower": tower,
            "out_features": cfg.MODEL.RESNETS.OUT_FEATURES,
            "trainable_blocks": tower.trained_blocks,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the stages of (N, 3, H, W) RGB pixels, normalised as CLIP's: float32 by name."""
        stages = self.tower.forward_stages(images, last=self._out_features[-1])
        return {name: stages[name] for name in self._out_features}


def build_clip_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipResNet:
    """Build the CLIP ResNet for ``CLIPRes5ROIHeads``, or alone.

    Features are those of MODEL.RESNETS.OUT_FEATURES, by default ``res4``. Its attention pool is
    frozen; ``CLIPRes5ROIHeads``, which reads it, trains it.
    """
    return ClipResNet(**ClipResNet.from_config(cfg, input_shape), train_pool=False)


def build_clip_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the CLIP ResNet with Detectron2's pyramid ``p2`` to ``p6`` of MODEL.FPN.

    MODEL.FPN.IN_FEATURES of an empty list stands for res2 to res5.
    """
    options = ClipResNet.from_config(cfg, input_shape)
    names = list(cfg.MODEL.FPN.IN_FEATURES) or list(STAGES)
    options["out_features"] = names
    bottom_up = ClipResNet(**options, train_pool=False)
    return FPN(
        bottom_up=bottom_up,
        in_features=names,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
