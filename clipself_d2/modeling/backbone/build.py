"""Builders of the backbones for MODEL.BACKBONE.NAME; the package registers them."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

from clipself_d2.modeling.backbone.clip_vit import ClipViT
from clipself_d2.modeling.backbone.pyramid import ClipViTPyramid


def build_clip_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViT:
    """Build the CLIP ViT alone, of one stride.

    Args:
        cfg: The whole config.
        input_shape: Shape of the images.

    Returns:
        Backbone with the features ``clip`` and ``block<i>`` for i in MODEL.CLIP.TAP_BLOCKS.
    """
    return ClipViT(cfg, input_shape)


def build_clip_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTPyramid:
    """Build the CLIP ViT with F-ViT's feature pyramid.

    Args:
        cfg: The whole config.
        input_shape: Shape of the images.

    Returns:
        Backbone with the features ``p2`` to ``p6`` for strides 4 to 32, and ``clip``.
    """
    return ClipViTPyramid(cfg, input_shape)
