"""CLIP image towers as Detectron2 backbones."""

from detectron2.modeling import BACKBONE_REGISTRY

from clipself_d2.backbones.build import (
    build_clip_vit_backbone,
    build_clip_vit_fpn_backbone,
    build_clip_vit_simple_fpn_backbone,
    build_clip_vit_stages_backbone,
    build_retinanet_clip_vit_fpn_backbone,
    build_retinanet_clip_vit_simple_fpn_backbone,
    build_semantic_clip_vit_fpn_backbone,
    build_semantic_clip_vit_simple_fpn_backbone,
    build_semantic_clip_vit_stages_backbone,
)
from clipself_d2.backbones.clip_resnet import (
    ClipResNet,
    build_clip_resnet_backbone,
    build_clip_resnet_fpn_backbone,
)
from clipself_d2.backbones.clip_vit import ClipViT
from clipself_d2.backbones.pyramid import ClipViTPyramid
from clipself_d2.backbones.simple_pyramid import ClipViTSimplePyramid
from clipself_d2.backbones.stages import ClipViTStages

for _builder in (
    build_clip_resnet_backbone,
    build_clip_resnet_fpn_backbone,
    build_clip_vit_backbone,
    build_clip_vit_fpn_backbone,
    build_clip_vit_simple_fpn_backbone,
    build_clip_vit_stages_backbone,
    build_retinanet_clip_vit_fpn_backbone,
    build_retinanet_clip_vit_simple_fpn_backbone,
    build_semantic_clip_vit_fpn_backbone,
    build_semantic_clip_vit_simple_fpn_backbone,
    build_semantic_clip_vit_stages_backbone,
):
    BACKBONE_REGISTRY.register(_builder)
