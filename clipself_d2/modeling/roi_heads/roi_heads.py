"""ROI heads for open vocabularies."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor

from clipself_d2.layers.region_pool import roi_embeddings
from clipself_d2.modeling.roi_heads.output_layers import CLIP_FIELD, OpenVocabFastRCNNOutputLayers

CLIP_FEATURE = "clip"


@ROI_HEADS_REGISTRY.register()
class OpenVocabROIHeads(StandardROIHeads):
    """Detectron2's standard heads with a text classifier and CLIP's scores at test time.

    Args:
        clip_stride: Input pixels per cell of the feature ``clip``.
        kwargs: Keyword arguments of ``StandardROIHeads``.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(self, *, clip_stride: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.clip_stride = clip_stride

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read what ``StandardROIHeads`` reads; the number of classes is the vocabulary's."""
        if CLIP_FEATURE not in input_shape:
            raise ValueError(
                f"{cls.__name__} needs a backbone with the feature 'clip', got "
                f"{sorted(input_shape)}; set MODEL.BACKBONE.NAME to build_clip_vit_fpn_backbone"
            )
        kwargs = super().from_config(cfg, input_shape)
        classifier = kwargs["box_predictor"].classifier
        clip = input_shape[CLIP_FEATURE]
        if classifier.embed_dim != clip.channels:
            raise ValueError(
                f"text embeddings are {classifier.embed_dim}-d but the tower projects to "
                f"{clip.channels}-d; MODEL.VOCABULARY.EMBEDDINGS must come from MODEL.CLIP.NAME"
            )
        kwargs["num_classes"] = classifier.num_classes
        kwargs["clip_stride"] = clip.stride
        return kwargs

    @classmethod
    def _init_box_head(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]
    ) -> dict[str, object]:
        parts = super()._init_box_head(cfg, input_shape)
        shape = parts["box_head"].output_shape
        parts["box_predictor"] = OpenVocabFastRCNNOutputLayers(cfg, shape)
        return parts

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.training:
            boxes = [item.proposal_boxes.tensor for item in proposals]
            pooled = roi_embeddings(features[CLIP_FEATURE], boxes, self.clip_stride)
            rows = torch.split(pooled, [len(item) for item in proposals])
            for item, embeddings in zip(proposals, rows, strict=True):
                item.set(CLIP_FIELD, embeddings)
        return super()._forward_box(features, proposals)
