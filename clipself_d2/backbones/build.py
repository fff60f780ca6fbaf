"""Builders of the backbones for MODEL.BACKBONE.NAME, one a kind; the package registers them."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from clipself_d2.backbones.clip_vit import ClipViT
from clipself_d2.backbones.pyramid import ClipViTPyramid
from clipself_d2.backbones.simple_pyramid import ClipViTSimplePyramid
from clipself_d2.backbones.stages import ClipViTStages


def build_clip_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViT:
    """Build the CLIP ViT alone: ``clip``, and ``block<i>`` for i in MODEL.CLIP.TAP_BLOCKS."""
    return ClipViT(cfg, input_shape)


def build_clip_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTPyramid:
    """Build the CLIP ViT with F-ViT's pyramid, ``p2`` to ``p6``, and ``clip``."""
    return ClipViTPyramid(cfg, input_shape)


def build_retinanet_clip_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTPyramid:
    """Build F-ViT's pyramid for one-stage detectors: ``p3`` to ``p7``, and ``clip``.

    The last two levels are convolutions.
    """
    return ClipViTPyramid(cfg, input_shape, one_stage=True)


def build_semantic_clip_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTPyramid:
    """Build F-ViT's pyramid for semantic heads, alone or in Panoptic FPN.

    It has images padded to whole last strides.
    """
    return ClipViTPyramid(cfg, input_shape, pad_to_stride=True)


def build_clip_vit_simple_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> ClipViTSimplePyramid:
    """Build the CLIP ViT with ViTDet's simple pyramid: ``p2`` to ``p6``, and ``clip``."""
    return ClipViTSimplePyramid(cfg, input_shape)


def build_retinanet_clip_vit_simple_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> ClipViTSimplePyramid:
    """Build the simple pyramid for one-stage detectors: ``p3`` to ``p7``, and ``clip``."""
    return ClipViTSimplePyramid(cfg, input_shape, one_stage=True)


def build_semantic_clip_vit_simple_fpn_backbone(
    cfg: CfgNode, input_shape: ShapeSpec
) -> ClipViTSimplePyramid:
    """Build the simple pyramid for semantic heads, padded to whole last strides."""
    return ClipViTSimplePyramid(cfg, input_shape, pad_to_stride=True)


def build_clip_vit_stages_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTStages:
    """Build the CLIP ViT behind the names of a ResNet's stages, for C4 and DC5.

    Features are those of MODEL.RESNETS.OUT_FEATURES, and ``clip``.
    """
    return ClipViTStages(cfg, input_shape)


def build_semantic_clip_vit_stages_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTStages:
    """Build the stages for semantic heads, such as DeepLab's, padded to whole last strides."""
    return ClipViTStages(cfg, input_shape, pad_to_stride=True)
