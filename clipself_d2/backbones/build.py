"""Builders of the backbones for MODEL.BACKBONE.NAME; the package registers them.

Each refuses a detector that asks for features which the backbone does not have.
"""

from typing import TypeVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from clipself_d2.backbones.clip_vit import ClipViT
from clipself_d2.backbones.compatibility import check_detector
from clipself_d2.backbones.pyramid import ClipViTPyramid
from clipself_d2.backbones.simple_pyramid import ClipViTSimplePyramid
from clipself_d2.backbones.stages import ClipViTStages

_Backbone = TypeVar("_Backbone", bound=Backbone)


def build_clip_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViT:
    """Build the CLIP ViT alone, of one stride.

    Args:
        cfg: The whole config.
        input_shape: Shape of the images.

    Returns:
        Backbone with the features ``clip`` and ``block<i>`` for i in MODEL.CLIP.TAP_BLOCKS.

    Raises:
        ValueError: If the detector of the config cannot read it.
    """
    return _checked(cfg, ClipViT(cfg, input_shape))


def build_clip_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTPyramid:
    """Build the CLIP ViT with F-ViT's feature pyramid.

    Args:
        cfg: The whole config.
        input_shape: Shape of the images.

    Returns:
        Backbone with the features ``p2`` to ``p6`` for strides 4 to 32, and ``clip``; for one-stage
        detectors ``p3`` to ``p7``.

    Raises:
        ValueError: If the detector of the config cannot read it.
    """
    return _checked(cfg, ClipViTPyramid(cfg, input_shape))


def build_clip_vit_simple_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> ClipViTSimplePyramid:
    """Build the CLIP ViT with ViTDet's simple feature pyramid.

    Args:
        cfg: The whole config.
        input_shape: Shape of the images.

    Returns:
        Backbone with the features of ``build_clip_vit_fpn_backbone``.

    Raises:
        ValueError: If the detector of the config cannot read it.
    """
    return _checked(cfg, ClipViTSimplePyramid(cfg, input_shape))


def build_clip_vit_stages_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTStages:
    """Build the CLIP ViT behind the names of a ResNet's stages, for C4, DC5 and DeepLab.

    Args:
        cfg: The whole config.
        input_shape: Shape of the images.

    Returns:
        Backbone with the features of MODEL.RESNETS.OUT_FEATURES, and ``clip``.

    Raises:
        ValueError: If the detector of the config cannot read it.
    """
    return _checked(cfg, ClipViTStages(cfg, input_shape))


def _checked(cfg: CfgNode, backbone: _Backbone) -> _Backbone:
    check_detector(cfg, backbone.output_shape())
    return backbone
