"""Box predictor whose classes are text.

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
from torch import Tensor, nn

from clipself_d2.layers.score_fusion import fuse_scores
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.modeling.text_embeddings import training_embeddings

# Field of the proposals that holds CLIP's (R, D) embeddings at test time.
CLIP_FIELD = "clip_embeddings"


def base_only_loss(
    logits_RK1: Tensor, labels_R: Tensor, base_mask_K: Tensor, background_weight: float
) -> Tensor:
    """Cross entropy over base classes and background.

    Args:
        logits_RK1: (R, K + 1), background last; R may be 0.
        labels_R: (R,) class numbers, K for background.
        base_mask_K: (K,) True for classes with training boxes; the others leave the softmax.
        background_weight: Weight of background regions.

    Returns:
        Weighted sum over regions divided by R, a scalar; 0 without regions.

    Raises:
        ValueError: If a region is labelled with a novel class.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1; the weights are not renormalised.
    """
    kept = torch.cat([base_mask_K, base_mask_K.new_ones(1)])
    novel = labels_R[~kept[labels_R]]
    if len(novel):
        raise ValueError(
            f"a training box is of novel class number {int(novel[0])}; DATASETS.TRAIN must be the "
            "base-only split of the vocabulary's data set"
        )
    if not len(labels_R):
        return logits_RK1.sum() * 0.0
    log_probability = F.log_softmax(mask_novel(logits_RK1, base_mask_K), dim=1)
    loss = -log_probability.gather(1, labels_R[:, None])[:, 0]
    is_background = labels_R == len(base_mask_K)
    weight = torch.where(is_background, background_weight, 1.0)
    return (weight * loss).sum() / len(labels_R)


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


class OpenVocabFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Fast R-CNN's predictor with text embeddings for a classifier, as in F-ViT.

    Both branches have a hidden layer with ReLU; the class branch's is the region embedding.

    Args:
        input_shape: Shape of a region's feature.
        box2box_transform: Coding of boxes.
        classifier: Text classifier of width D; gives the number of classes.
        background_weight: Weight of background regions in the loss.
        clip_temperature: Multiplier of CLIP's cosine at test time.
        alpha: Exponent of CLIP's score for base classes and background.
        beta: Exponent of CLIP's score for novel classes.
        kwargs: Further keyword arguments of ``FastRCNNOutputLayers``.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        classifier: TextClassifier,
        background_weight: float,
        clip_temperature: float,
        alpha: float,
        beta: float,
        **kwargs: object,
    ) -> None:
        super().__init__(
            input_shape,
            box2box_transform=box2box_transform,
            num_classes=classifier.num_classes,
            cls_agnostic_bbox_reg=True,
            **kwargs,
        )
        width = self.bbox_pred.in_features
        hidden = nn.Linear(width, classifier.embed_dim)
        self.cls_score = nn.Sequential(hidden, nn.ReLU(), classifier)
        self.bbox_pred = nn.Sequential(nn.Linear(width, width), nn.ReLU(), self.bbox_pred)
        self.background_weight = background_weight
        self.clip_temperature = clip_temperature
        self.alpha, self.beta = alpha, beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.OPEN_VOCAB, and what Detectron2's predictor reads."""
        kwargs = super().from_config(cfg, input_shape)
        for derived in ("num_classes", "cls_agnostic_bbox_reg"):
            kwargs.pop(derived)
        options = cfg.MODEL.OPEN_VOCAB
        embeddings = training_embeddings(cfg)
        kwargs["classifier"] = TextClassifier(
            embeddings_KD=embeddings.embeddings_KD,
            base_mask_K=torch.tensor(embeddings.vocabulary.base_mask),
            background_D=embeddings.background_D,
            background_mode=options.BACKGROUND,
            temperature=options.TEMPERATURE,
            learn_temperature=options.LEARN_TEMPERATURE,
        )
        kwargs["background_weight"] = options.BACKGROUND_WEIGHT
        kwargs["clip_temperature"] = options.CLIP_TEMPERATURE
        kwargs["alpha"], kwargs["beta"] = options.ALPHA, options.BETA
        return kwargs

    @property
    def classifier(self) -> TextClassifier:
        """The text classifier at the end of the class branch."""
        return self.cls_score[-1]

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Losses over base classes, background and boxes.

        Args:
            predictions: (R, K + 1) logits and (R, 4) deltas.
            proposals: Sampled proposals with ``gt_classes`` and ``gt_boxes``.

        Returns:
            ``loss_cls`` and ``loss_box_reg``.
        """
        logits, deltas = predictions
        labels = torch.cat([item.gt_classes for item in proposals])
        base_mask = self.classifier.base_mask_K
        losses = super().losses((mask_novel(logits, base_mask), deltas), proposals)
        loss = base_only_loss(logits, labels, base_mask, self.background_weight)
        losses["loss_cls"] = loss * self.loss_weight.get("loss_cls", 1.0)
        return losses

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Fuse the detector's probabilities with CLIP's.

        Args:
            predictions: (R, K + 1) logits and (R, 4) deltas.
            proposals: Proposals with ``clip_embeddings`` (Ri, D); without that field the
                detector's probabilities stand alone.

        Returns:
            (Ri, K + 1) scores for each image, background last.
        """
        detector = F.softmax(predictions[0], dim=1)
        counts = [len(item) for item in proposals]
        if not all(item.has(CLIP_FIELD) for item in proposals):
            return detector.split(counts)
        embeddings = torch.cat([item.get(CLIP_FIELD) for item in proposals])
        clip = F.softmax(self.clip_temperature * self.classifier.cosine(embeddings), dim=1)
        base_mask = self.classifier.base_mask_K
        return fuse_scores(detector, clip, base_mask, self.alpha, self.beta).split(counts)
