"""RetinaNet and FCOS whose classes are text, and what they share.

Legend: N images, A anchors of a cell, R anchors of an image, K classes, D joint embedding, h w
cells of a level.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from clipself_d2.detection.base_losses import check_labels
from clipself_d2.layers.text_classifier import SigmoidTextClassifier
from clipself_d2.parts.text_embeddings import build_sigmoid_classifier, training_embeddings

# A logit whose sigmoid is 0 and whose focal loss and its gradient are 0 for a negative label.
_NEVER = -100.0


class DenseTextScore(nn.Module):
    """Scores of the anchors of every cell; stands where a head has its convolution of classes.

    Args:
        in_channels: Channels of the head's last convolution.
        num_anchors: Anchors A of a cell.
        classifier: Text classifier of width D.
    """

    def __init__(
        self, *, in_channels: int, num_anchors: int, classifier: SigmoidTextClassifier
    ) -> None:
        super().__init__()
        width = num_anchors * classifier.embed_dim
        self.embed = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        c2_xavier_fill(self.embed)
        self.num_anchors = num_anchors
        self.classifier = classifier

    def forward(self, feature: Tensor) -> Tensor:
        """Score a level (N, C, h, w): (N, A * K, h, w), the classes of an anchor together."""
        embedded = self.embed(feature).unflatten(1, (self.num_anchors, self.classifier.embed_dim))
        logits = self.classifier(embedded.permute(0, 1, 3, 4, 2))
        return logits.permute(0, 1, 4, 2, 3).flatten(1, 2)


class TextHeadMixin:
    """Constructor of a one-stage head with an embedding and a text classifier.

    Stands before Detectron2's class, whose convolution of classes it replaces.

    Args:
        input_shape: Shapes of the levels.
        classifier: Text classifier; gives the number of classes.
        conv_dims: Channels of the convolutions of both branches.
        norm: Norm of these, as MODEL.RETINANET.NORM.
        num_anchors: Anchors of a cell; None for a class of one anchor, which takes no number.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        classifier: SigmoidTextClassifier,
        conv_dims: Sequence[int],
        norm: str = "",
        num_anchors: int | None = None,
    ) -> None:
        options: dict[str, object] = {} if num_anchors is None else {"num_anchors": num_anchors}
        super().__init__(  # type: ignore[call-arg]
            input_shape=input_shape,
            num_classes=1,  # of the convolution that is replaced
            conv_dims=list(conv_dims),
            norm=norm,
            **options,
        )
        put_text_score(self, conv_dims, num_anchors or 1, classifier)  # type: ignore[arg-type]


class TextClassesMixin:
    """Constructor, number of classes and loss of a one-stage detector with text classes.

    Stands before Detectron2's class. Novel classes are no negatives: their columns leave the loss.

    Args:
        head: Head whose ``cls_score`` is a ``DenseTextScore``.
        kwargs: Further keyword arguments of Detectron2's class; the number of classes is the
            classifier's.
    """

    head: nn.Module

    @configurable
    def __init__(self, *, head: nn.Module, **kwargs: object) -> None:
        known = _classifier_of(head).num_classes
        super().__init__(head=head, num_classes=known, **kwargs)  # type: ignore[call-arg]

    @property
    def num_classes(self) -> int:
        """Number K of the present vocabulary; Detectron2 reshapes logits by it."""
        return self.classifier.num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        # Detectron2's constructor assigns the classifier's, which it was given.
        assert value == self.classifier.num_classes, "the number of classes is the vocabulary's"

    @property
    def classifier(self) -> SigmoidTextClassifier:
        """The text classifier of the head."""
        return _classifier_of(self.head)

    def losses(
        self,
        anchors: list,
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        *others: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses over base classes and boxes.

        Args:
            anchors: Boxes of the anchors of every level.
            pred_logits: (N, Rl, K) of every level.
            gt_labels: (R,) class numbers of every image, K for background, -1 for ignored anchors.
            pred_anchor_deltas: (N, Rl, 4) of every level.
            others: What the parent takes beside.

        Returns:
            Scalars by name, those of the parent.

        Raises:
            ValueError: If an anchor is labelled with a novel class, or none of the vocabulary.
        """
        base_mask = self.classifier.base_mask
        labels = torch.cat(gt_labels)
        check_labels(labels[labels >= 0], base_mask)
        masked = [logits.masked_fill(~base_mask, _NEVER) for logits in pred_logits]
        # Mixed precision would decode pixels to 8 or 11 bits, and fvcore's GIoU refuses two types.
        deltas = [level.float() for level in pred_anchor_deltas]
        return super().losses(anchors, masked, gt_labels, deltas, *others)  # type: ignore[misc]


def training_classifier(cfg: CfgNode) -> SigmoidTextClassifier:
    """Make the classifier of MODEL.VOCABULARY, MODEL.OPEN_VOCAB and MODEL.RETINANET.PRIOR_PROB."""
    return build_sigmoid_classifier(
        training_embeddings(cfg),
        prior=cfg.MODEL.RETINANET.PRIOR_PROB,
        scale=cfg.MODEL.OPEN_VOCAB.SCALE,
        learn_scale=cfg.MODEL.OPEN_VOCAB.LEARN_SCALE,
    )


def put_text_score(
    head: nn.Module, conv_dims: Sequence[int], num_anchors: int, classifier: SigmoidTextClassifier
) -> None:
    """Replace, in place, the convolution of classes of Detectron2's head."""
    head.cls_score = DenseTextScore(
        in_channels=conv_dims[-1], num_anchors=num_anchors, classifier=classifier
    )


def _classifier_of(head: nn.Module) -> SigmoidTextClassifier:
    score = head.cls_score
    assert isinstance(score, DenseTextScore), f"cls_score of the head is {type(score)}"
    return score.classifier


class OpenVocabRetinaNetHead(TextHeadMixin, RetinaNetHead):
    """Detectron2's head with an embedding and a text classifier, as ``TextHeadMixin``."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read MODEL.RETINANET, and the classes as ``training_classifier``."""
        options: dict[str, object] = super().from_config(cfg, input_shape)
        # The vocabulary and the classifier have these.
        del options["num_classes"], options["prior_prob"]
        return {"classifier": training_classifier(cfg), **options}


class OpenVocabRetinaNet(TextClassesMixin, RetinaNet):
    """Detectron2's RetinaNet with text classes: sigmoid over scaled cosines.

    Args:
        head: Head whose ``cls_score`` is a ``DenseTextScore``.
        kwargs: Further keyword arguments of ``RetinaNet``; the number of classes is the
            classifier's.

    Reference: RetinaNet, arXiv 1708.02002; text classes as Detic, arXiv 2201.02605.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read what ``RetinaNet`` reads; the number of classes is the vocabulary's."""
        options: dict[str, object] = super().from_config(cfg)
        del options["num_classes"]
        shapes = options["backbone"].output_shape()  # type: ignore[attr-defined]
        levels = [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
        return {**options, "head": OpenVocabRetinaNetHead(cfg, levels)}


class OpenVocabFCOSHead(TextHeadMixin, FCOSHead):
    """Detectron2's head with an embedding and a text classifier, as ``TextHeadMixin``."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read MODEL.RETINANET, and the classes as ``training_classifier``."""
        return {
            "input_shape": input_shape,
            "classifier": training_classifier(cfg),
            "conv_dims": [input_shape[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            "norm": cfg.MODEL.RETINANET.NORM,
        }


class OpenVocabFCOS(TextClassesMixin, FCOS):
    """Detectron2's FCOS with text classes: sigmoid over scaled cosines.

    Detectron2 has no yaml keys for FCOS; here it reads those of MODEL.RETINANET that fit.

    Args:
        head: Head whose ``cls_score`` is a ``DenseTextScore``.
        kwargs: Further keyword arguments of ``FCOS``; the number of classes is the classifier's.

    Reference: FCOS, arXiv 2006.09214; text classes as Detic, arXiv 2201.02605.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.RETINANET; the number of classes is the vocabulary's."""
        backbone = build_backbone(cfg)
        shapes, options = backbone.output_shape(), cfg.MODEL.RETINANET
        return {
            "backbone": backbone,
            "head": OpenVocabFCOSHead(cfg, [shapes[name] for name in options.IN_FEATURES]),
            "head_in_features": options.IN_FEATURES,
            "focal_loss_alpha": options.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": options.FOCAL_LOSS_GAMMA,
            "test_score_thresh": options.SCORE_THRESH_TEST,
            "test_topk_candidates": options.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": options.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
