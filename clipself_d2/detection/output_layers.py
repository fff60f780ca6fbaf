"""Box predictors whose classes are text: what they share, and F-ViT's.

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
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from clipself_d2.detection.selection import (
    LossScaling,
    Selection,
    SelectionMixin,
    check_softmax,
    read_scaling,
    read_selection,
)
from clipself_d2.layers.focal_scaling import focal_scaled_loss
from clipself_d2.layers.score_fusion import check_exponents, fuse_scores
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.text_embeddings import build_text_classifier, training_embeddings

# Field of the proposals that holds CLIP's (R, D) embeddings at test time.
CLIP_FIELD = "clip_embeddings"
_PLAIN_LOSS, _PLAIN_SELECTION = LossScaling(), Selection()


def base_only_loss(
    logits_RK1: Tensor,
    labels_R: Tensor,
    base_mask_K: Tensor,
    background_weight: float,
    scaling: LossScaling | None = None,
) -> Tensor:
    """Cross entropy over base classes and background.

    Args:
        logits_RK1: (R, K + 1), background last; R may be 0.
        labels_R: (R,) class numbers, K for background.
        base_mask_K: (K,) True for classes with training boxes; the others leave the softmax.
        background_weight: Weight of background regions.
        scaling: Focal factor and divisor; None is F-ViT's plain sum divided by R.

    Returns:
        Weighted sum over regions divided by R or by the weights, a scalar; 0 without regions.

    Raises:
        ValueError: If a region is labelled with a novel class, or with none of the vocabulary.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1; the weights are not renormalised.
    """
    check_labels(labels_R, base_mask_K)
    if not len(labels_R):
        return logits_RK1.sum() * 0.0
    scaling = scaling or LossScaling()
    return focal_scaled_loss(
        mask_novel(logits_RK1, base_mask_K),
        labels_R,
        gamma=scaling.gamma,
        background_weight=background_weight,
        normalize=scaling.normalize,
    )


def mask_novel(logits_RK1: Tensor, base_mask_K: Tensor) -> Tensor:
    """Exclude novel classes from a softmax.

    Args:
        logits_RK1: (R, K + 1), background last.
        base_mask_K: (K,) True for base classes.

    Returns:
        A copy with minus infinity in the columns of novel classes.
    """
    novel = torch.cat([~base_mask_K, base_mask_K.new_zeros(1)])
    return logits_RK1.masked_fill(novel, float("-inf"))


def check_labels(labels_R: Tensor, base_mask_K: Tensor) -> None:
    """Refuse training labels of classes that are not trained.

    Args:
        labels_R: (R,) class numbers, K for background.
        base_mask_K: (K,) True for classes with training boxes.

    Raises:
        ValueError: If a label is of a novel class, or of none of the vocabulary.
    """
    num_classes = len(base_mask_K)
    trained = torch.cat([base_mask_K, base_mask_K.new_ones(1)])
    inside = (labels_R >= 0) & (labels_R <= num_classes)
    wrong = labels_R[~(inside & trained[labels_R.clamp(0, num_classes)])]
    if not len(wrong):
        return
    label = int(wrong[0])
    if not 0 <= label <= num_classes:
        raise ValueError(
            f"a training box has class number {label}, but the vocabulary has {num_classes} "
            "classes; MODEL.VOCABULARY.DATASET must have the classes of DATASETS.TRAIN"
        )
    raise ValueError(
        f"a training box is of the novel class number {label}; the data set is not base-only: "
        "DATASETS.TRAIN must be the split without boxes of novel classes"
    )


class TextFastRCNNOutputLayers(SelectionMixin, FastRCNNOutputLayers):
    """Fast R-CNN's predictor with text for classes: its options, its losses and its detections.

    Subclasses put the classifier where they read the embedding, and score regions. Boxes are coded
    without regard to the class, so that any vocabulary fits.

    Args:
        input_shape: Shape of a region's feature.
        box2box_transform: Coding of boxes.
        classifier: Text classifier; gives the number of classes.
        background_weight: Weight of background regions in the loss, >= 0.
        scaling: Focal factor and divisor of the classification loss.
        selection: How scores become detections.
        kwargs: Further keyword arguments of ``FastRCNNOutputLayers``.

    Raises:
        ValueError: If the weight is negative, or a loss other than softmax's is asked for.
    """

    cls_score: nn.Module
    bbox_pred: nn.Module

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
        self.background_weight = background_weight
        self.scaling, self.selection = scaling, selection

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.OPEN_VOCAB, and what Detectron2's predictor reads.

        Args:
            cfg: The whole config.
            input_shape: Shape of a region's feature.

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
            temperature=options.SCALE,
            learn_temperature=options.LEARN_SCALE,
        )
        kwargs["background_weight"] = options.BACKGROUND_WEIGHT
        kwargs["scaling"], kwargs["selection"] = read_scaling(cfg), read_selection(cfg)
        return kwargs

    @property
    def classifier(self) -> TextClassifier:
        """The text classifier, alone or at the end of the class branch."""
        branch = self.cls_score
        classifier = branch[-1] if isinstance(branch, nn.Sequential) else branch
        assert isinstance(classifier, TextClassifier), f"cls_score ends in {type(classifier)}"
        return classifier

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses over base classes, background and boxes.

        Args:
            predictions: (R, K + 1) logits and (R, 4) deltas.
            proposals: Sampled proposals with ``gt_classes`` and ``gt_boxes``.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.

        Raises:
            ValueError: If a proposal is labelled with a class that is not trained.
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


class OpenVocabFastRCNNOutputLayers(TextFastRCNNOutputLayers):
    """Fast R-CNN's predictor with text embeddings for a classifier, as in F-ViT.

    Both branches have a hidden layer with ReLU; the class branch's is the region embedding. Boxes
    are coded without regard to the class, so that any vocabulary fits.

    Args:
        input_shape: Shape of a region's feature.
        classifier: Text classifier of width D; gives the number of classes.
        background_weight: Weight of background regions in the loss, >= 0.
        clip_temperature: Multiplier of CLIP's cosine at test time, > 0.
        alpha: Exponent of CLIP's score for base classes and background, in [0, 1].
        beta: Exponent of CLIP's score for novel classes, in [0, 1].
        kwargs: Further keyword arguments of ``TextFastRCNNOutputLayers``.

    Raises:
        ValueError: If a number is out of its range, or a loss other than softmax's is asked for.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classifier: TextClassifier,
        background_weight: float = 0.6,
        clip_temperature: float = 75.0,
        alpha: float = 0.1,
        beta: float = 0.8,
        **kwargs: object,
    ) -> None:
        check_exponents(alpha, beta)
        if clip_temperature <= 0:
            raise ValueError(f"MODEL.OPEN_VOCAB.CLIP_SCALE is {clip_temperature}; it must be > 0")
        super().__init__(
            input_shape, classifier=classifier, background_weight=background_weight, **kwargs
        )
        deltas = self.bbox_pred
        assert isinstance(deltas, nn.Linear), f"bbox_pred of Detectron2 is {type(deltas)}"
        width = deltas.in_features
        embed, hidden = nn.Linear(width, classifier.embed_dim), nn.Linear(width, width)
        c2_xavier_fill(embed)
        c2_xavier_fill(hidden)
        self.cls_score = nn.Sequential(embed, nn.ReLU(), classifier)
        self.bbox_pred = nn.Sequential(hidden, nn.ReLU(), deltas)
        self.clip_temperature = clip_temperature
        self.alpha, self.beta = alpha, beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.OPEN_VOCAB, and what Detectron2's predictor reads.

        Args:
            cfg: The whole config.
            input_shape: Shape of a region's feature.

        Returns:
            Arguments of the constructor.
        """
        options = cfg.MODEL.OPEN_VOCAB
        return {
            **super().from_config(cfg, input_shape),
            "clip_temperature": options.CLIP_SCALE,
            "alpha": options.ENSEMBLE_ALPHA,
            "beta": options.ENSEMBLE_BETA,
        }

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Fuse the detector's probabilities with CLIP's.

        Args:
            predictions: (R, K + 1) logits and (R, 4) deltas.
            proposals: Proposals with ``clip_embeddings`` (Ri, D).

        Returns:
            (Ri, K + 1) scores for each image, background last.

        Raises:
            ValueError: If proposals have no such field.
        """
        if not all(item.has(CLIP_FIELD) for item in proposals):
            raise ValueError(
                f"proposals have no field {CLIP_FIELD!r} with the embeddings of their boxes; set "
                "MODEL.ROI_HEADS.NAME to OpenVocabROIHeads, which makes it"
            )
        detector = F.softmax(predictions[0], dim=1)
        counts = [len(item) for item in proposals]
        embeddings = torch.cat([item.get(CLIP_FIELD) for item in proposals])
        clip = F.softmax(self.clip_temperature * self.classifier.cosine(embeddings), dim=1)
        base_mask = self.classifier.base_mask
        scores = torch.split(fuse_scores(detector, clip, base_mask, self.alpha, self.beta), counts)
        return self.with_objectness(scores, proposals)
