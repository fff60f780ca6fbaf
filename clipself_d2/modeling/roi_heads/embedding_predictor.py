"""Box predictor that reads a region's CLIP embedding itself.

Legend: R regions, K classes, D joint embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor

from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.modeling.roi_heads.output_layers import base_only_loss, mask_novel
from clipself_d2.modeling.roi_heads.selection import (
    LossScaling,
    Selection,
    SelectionMixin,
    check_softmax,
    read_scaling,
    read_selection,
)
from clipself_d2.modeling.text_embeddings import build_text_classifier, training_embeddings

_PLAIN_LOSS, _PLAIN_SELECTION = LossScaling(), Selection()


class EmbeddingFastRCNNOutputLayers(SelectionMixin, FastRCNNOutputLayers):
    """Fast R-CNN's predictor on region embeddings, as in RegionCLIP.

    Classes are scaled cosines of the embedding to the text, boxes a linear function of it; nothing
    stands between, so that an untrained detector is CLIP. Boxes are coded without regard to the
    class, so that any vocabulary fits.

    Args:
        input_shape: Shape of a region's embedding; its channels are D.
        box2box_transform: Coding of boxes.
        classifier: Text classifier of width D; gives the number of classes.
        background_weight: Weight of background regions in the loss, >= 0.
        scaling: Focal factor and divisor of the classification loss.
        selection: How scores become detections.
        kwargs: Further keyword arguments of ``FastRCNNOutputLayers``.

    Raises:
        ValueError: If widths differ, or a loss other than softmax's is asked for.

    Reference: RegionCLIP, arXiv 2112.09106, section 3.3.
    """

    cls_score: TextClassifier  # type: ignore[assignment]

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        classifier: TextClassifier,
        background_weight: float = 1.0,
        scaling: LossScaling = _PLAIN_LOSS,
        selection: Selection = _PLAIN_SELECTION,
        **kwargs: object,
    ) -> None:
        check_softmax(kwargs)
        if input_shape.channels != classifier.embed_dim:
            raise ValueError(
                f"text embeddings are {classifier.embed_dim}-d but regions {input_shape.channels}-d"
                "; MODEL.VOCABULARY.EMBEDDINGS must come from MODEL.CLIP.NAME"
            )
        if background_weight < 0:
            raise ValueError(
                f"MODEL.OPEN_VOCAB.BACKGROUND_WEIGHT is {background_weight}; it must be >= 0"
            )
        super().__init__(
            input_shape,
            box2box_transform=box2box_transform,
            num_classes=classifier.num_classes,
            cls_agnostic_bbox_reg=True,
            **kwargs,
        )
        self.cls_score = classifier
        self.background_weight = background_weight
        self.scaling, self.selection = scaling, selection

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.OPEN_VOCAB, and what Detectron2's predictor reads.

        Args:
            cfg: The whole config.
            input_shape: Shape of a region's embedding.

        Returns:
            Arguments of the constructor.
        """
        kwargs: dict[str, object] = super().from_config(cfg, input_shape)
        # Both follow from the vocabulary.
        del kwargs["num_classes"], kwargs["cls_agnostic_bbox_reg"]
        options = cfg.MODEL.OPEN_VOCAB
        kwargs["classifier"] = build_text_classifier(
            training_embeddings(cfg),
            background_mode=options.BACKGROUND,
            temperature=options.TEMPERATURE,
            learn_temperature=options.LEARN_TEMPERATURE,
        )
        kwargs["background_weight"] = options.BACKGROUND_WEIGHT
        kwargs["scaling"], kwargs["selection"] = read_scaling(cfg), read_selection(cfg)
        return kwargs

    @property
    def classifier(self) -> TextClassifier:
        """The text classifier."""
        return self.cls_score

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Compute the losses over base classes.

        Args:
            predictions: (R, K + 1) logits and (R, 4) deltas.
            proposals: Sampled proposals with ``gt_classes``, and ``gt_boxes`` where there are any.

        Returns:
            ``loss_cls`` and ``loss_box_reg``.
        """
        logits, deltas = predictions
        labels = torch.cat([item.gt_classes for item in proposals])
        base_mask = self.classifier.base_mask
        loss = base_only_loss(logits, labels, base_mask, self.background_weight, self.scaling)
        losses: dict[str, Tensor] = super().losses(
            (mask_novel(logits, base_mask), deltas), proposals
        )
        losses["loss_cls"] = loss * self.loss_weight.get("loss_cls", 1.0)
        return losses

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Score every class, base and novel alike.

        Args:
            predictions: (R, K + 1) logits and (R, 4) deltas.
            proposals: Proposals of each image.

        Returns:
            (Ri, K + 1) scores for each image, background last.
        """
        counts = [len(item) for item in proposals]
        scores = torch.split(F.softmax(predictions[0], dim=1), counts)
        return self.with_objectness(scores, proposals)
