"""ROI heads for open vocabularies."""

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor

from clipself_d2.backbones.clip_vit import CLIP_FEATURE
from clipself_d2.detection.output_layers import CLIP_FIELD, OpenVocabFastRCNNOutputLayers
from clipself_d2.layers.region_pool import roi_embeddings
from clipself_d2.layers.text_classifier import TextClassifier


class OpenVocabMixin:
    """What heads with text classifiers share; stands before a class of Detectron2's heads."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read what Detectron2's heads read; the number of classes is the vocabulary's.

        A ValueError says that the backbone has no ``clip``, or the text embeddings another width.
        """
        if CLIP_FEATURE not in input_shape:
            raise ValueError(
                f"{cls.__name__} needs a backbone with the feature {CLIP_FEATURE!r}, got "
                f"{sorted(input_shape)}; set MODEL.BACKBONE.NAME to build_clip_vit_fpn_backbone"
            )
        kwargs: dict[str, object] = super().from_config(cfg, input_shape)  # type: ignore[misc]
        kwargs.pop("num_classes")
        kwargs["clip_stride"] = input_shape[CLIP_FEATURE].stride
        return kwargs

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        check_masks(cfg)
        parts: dict[str, object] = super()._init_mask_head(cfg, input_shape)  # type: ignore[misc]
        return parts

    def _forward_mask(
        self: Any, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if (
            not self.training
            or not self.mask_on
            or torch.cat([item.gt_classes < self.num_classes for item in instances]).any()
        ):
            return super()._forward_mask(features, instances)  # type: ignore[misc]
        # Detectron2 would run the head on no region; one box keeps norms and gradients in step.
        maps = [features[name] for name in self.mask_in_features]
        boxes = [item.proposal_boxes[:1] for item in instances]
        logits = self.mask_head.layers(self.mask_pooler(maps, boxes))
        return {"loss_mask": logits.sum() * 0.0}


class OpenVocabROIHeads(OpenVocabMixin, StandardROIHeads):
    """Detectron2's standard heads with a text classifier and CLIP's scores at test time.

    CLIP sees the proposals, not the refined boxes. A mask head must be class-agnostic; without an
    object in any image of this process it still takes part in the step, so that norms over
    several processes and gradients are not waited for.

    Args:
        box_predictor: Predictor with a text classifier.
        clip_stride: Input pixels per cell of the feature ``clip``.
        kwargs: Further keyword arguments of ``StandardROIHeads``; the number of classes is the
            classifier's.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(
        self,
        *,
        box_predictor: OpenVocabFastRCNNOutputLayers,
        clip_stride: float,
        **kwargs: object,
    ) -> None:
        known = box_predictor.classifier.num_classes
        super().__init__(box_predictor=box_predictor, num_classes=known, **kwargs)
        self.clip_stride = clip_stride

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        parts = super()._init_box_head(cfg, input_shape)
        predictor = OpenVocabFastRCNNOutputLayers(cfg, parts["box_head"].output_shape)
        check_widths(predictor.classifier, input_shape[CLIP_FEATURE].channels)
        return {**parts, "box_predictor": predictor}

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.training:
            proposals = embed_proposals(features[CLIP_FEATURE], proposals, self.clip_stride)
        return super()._forward_box(features, proposals)


def check_masks(cfg: CfgNode) -> None:
    """Raise a ValueError for masks that have a channel for each class."""
    if cfg.MODEL.MASK_ON and not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        raise ValueError(
            "masks of each class of their own cannot follow a change of vocabulary; set "
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK to True"
        )


def embed_proposals(
    dense_NDhw: Tensor, proposals: list[Instances], clip_stride: float
) -> list[Instances]:
    """Pool CLIP's map in proposals: copies of them with ``clip_embeddings`` (Ri, D)."""
    pooled = roi_embeddings(
        dense_NDhw, [item.proposal_boxes.tensor for item in proposals], clip_stride
    )
    rows = torch.split(pooled, [len(item) for item in proposals])
    return [
        Instances(item.image_size, **{**item.get_fields(), CLIP_FIELD: embeddings})
        for item, embeddings in zip(proposals, rows, strict=True)
    ]


def check_widths(classifier: TextClassifier, clip_width: int) -> None:
    """Raise a ValueError for text embeddings of another CLIP than the backbone's."""
    if classifier.embed_dim != clip_width:
        raise ValueError(
            f"text embeddings are {classifier.embed_dim}-d but the tower projects to {clip_width}-d"
            "; MODEL.VOCABULARY.EMBEDDINGS must come from MODEL.CLIP.NAME"
        )
