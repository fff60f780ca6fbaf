"""What RetinaNet and FCOS share where classes are text.

Legend: N images, A anchors of a cell, R anchors of an image, K classes, D joint embedding, h w
cells of a level.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from clipself_d2.layers.text_classifier import SigmoidTextClassifier
from clipself_d2.modeling.roi_heads.output_layers import check_labels
from clipself_d2.modeling.text_embeddings import training_embeddings
from clipself_d2.vocabulary import TextEmbeddings

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
        """Score a level.

        Args:
            feature: (N, in_channels, h, w).

        Returns:
            (N, A * K, h, w) logits, the classes of an anchor side by side.
        """
        embedded = self.embed(feature).unflatten(1, (self.num_anchors, self.classifier.embed_dim))
        logits = self.classifier(embedded.movedim(2, -1))
        return logits.movedim(-1, 2).flatten(1, 2)


class TextClassesMixin:
    """Number of classes and loss of a one-stage detector with text classes.

    Stands before Detectron2's class. Novel classes are no negatives: their columns leave the loss.
    """

    head: nn.Module

    @property
    def num_classes(self) -> int:
        """Number K of the present vocabulary; Detectron2 reshapes logits by it."""
        return self.classifier.num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        # Detectron2's constructor assigns the number that it was given.
        if value != self.classifier.num_classes:
            raise ValueError(
                f"num_classes is {value} but the vocabulary has {self.classifier.num_classes} "
                "classes; leave num_classes out"
            )

    @property
    def classifier(self) -> SigmoidTextClassifier:
        """The text classifier of the head."""
        score = self.head.cls_score
        assert isinstance(score, DenseTextScore), f"cls_score of the head is {type(score)}"
        return score.classifier

    def losses(
        self,
        anchors: list,
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        *others: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses over base classes and boxes.

        Args:
            anchors: Boxes of the anchors of every level.
            pred_logits: (N, Rl, K) of every level.
            gt_labels: (R,) class numbers of every image, K for background, -1 for ignored anchors.
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
        return super().losses(anchors, masked, gt_labels, *others)  # type: ignore[misc]


def build_sigmoid_classifier(
    embeddings: TextEmbeddings,
    *,
    prior: float = 0.01,
    temperature: float = 50.0,
    learn_temperature: bool = True,
) -> SigmoidTextClassifier:
    """Make a classifier of independent classes of a vocabulary's embeddings.

    Args:
        embeddings: The classes and their embeddings.
        prior: Probability at the start for a cosine of 0.
        temperature: Multiplier of the cosine.
        learn_temperature: Whether that is a parameter.

    Returns:
        The classifier.
    """
    return SigmoidTextClassifier(
        embeddings_KD=embeddings.embeddings_KD,
        base_mask_K=torch.tensor(embeddings.vocabulary.base_mask),
        prior=prior,
        temperature=temperature,
        learn_temperature=learn_temperature,
    )


def training_classifier(cfg: CfgNode) -> SigmoidTextClassifier:
    """Make the classifier of MODEL.VOCABULARY, MODEL.OPEN_VOCAB and MODEL.RETINANET.PRIOR_PROB.

    Args:
        cfg: The whole config.

    Returns:
        The classifier of the training vocabulary.
    """
    return build_sigmoid_classifier(
        training_embeddings(cfg),
        prior=cfg.MODEL.RETINANET.PRIOR_PROB,
        temperature=cfg.MODEL.OPEN_VOCAB.TEMPERATURE,
        learn_temperature=cfg.MODEL.OPEN_VOCAB.LEARN_TEMPERATURE,
    )


def put_text_score(
    head: nn.Module, conv_dims: Sequence[int], num_anchors: int, classifier: SigmoidTextClassifier
) -> None:
    """Replace a head's convolution of classes.

    Args:
        head: Head of Detectron2 with ``cls_score``; changed in place.
        conv_dims: Channels of its convolutions, one at least.
        num_anchors: Anchors of a cell.
        classifier: Text classifier.
    """
    head.cls_score = DenseTextScore(
        in_channels=conv_dims[-1], num_anchors=num_anchors, classifier=classifier
    )
