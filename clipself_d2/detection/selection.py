"""From scores of regions to detections, and how the classification loss is scaled.

Legend: R regions, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor

from clipself_d2.layers.soft_nms import batched_soft_nms, check_soft_nms

RPN_SCORES = ("", "sigmoid", "raw_logit")


@dataclass(frozen=True)
class LossScaling:
    """Focal factor and divisor of the classification loss.

    Attributes:
        gamma: Exponent of (1 - p), >= 0; 0 leaves the factor out.
        normalize: Whether the loss is divided by the sum of the regions' weights instead of their
            number.
    """

    gamma: float = 0.0
    normalize: bool = False

    def __post_init__(self) -> None:
        """Refuse a negative exponent."""
        if self.gamma < 0:
            raise ValueError(f"MODEL.OPEN_VOCAB.FOCAL_GAMMA is {self.gamma}; it must be >= 0")


@dataclass(frozen=True)
class Selection:
    """How scored regions become detections.

    Attributes:
        no_box_delta: Whether proposals are taken as boxes, without the regressor's deltas.
        rpn_score: "" for class scores alone; "sigmoid" or "raw_logit" for their geometric mean with
            the proposals' objectness.
        soft_nms: Method of ``batched_soft_nms``, or "" for Detectron2's NMS.
        soft_nms_sigma: Width of its gaussian.
    """

    no_box_delta: bool = False
    rpn_score: str = ""
    soft_nms: str = ""
    soft_nms_sigma: float = 0.5

    def __post_init__(self) -> None:
        """Refuse unknown names."""
        if self.rpn_score not in RPN_SCORES:
            raise ValueError(
                f"MODEL.OPEN_VOCAB.RPN_SCORE is {self.rpn_score!r}; it is one of {RPN_SCORES}"
            )
        if self.soft_nms:
            check_soft_nms(self.soft_nms, self.soft_nms_sigma)


def read_scaling(cfg: CfgNode) -> LossScaling:
    """Read FOCAL_GAMMA and NORMALIZE_WEIGHTS.

    Args:
        cfg: The whole config.

    Returns:
        The scaling.
    """
    options = cfg.MODEL.OPEN_VOCAB
    return LossScaling(gamma=options.FOCAL_GAMMA, normalize=options.NORMALIZE_WEIGHTS)


def read_selection(cfg: CfgNode) -> Selection:
    """Read NO_BOX_DELTA, RPN_SCORE, SOFT_NMS and SOFT_NMS_SIGMA.

    Args:
        cfg: The whole config.

    Returns:
        The selection.
    """
    options = cfg.MODEL.OPEN_VOCAB
    return Selection(
        no_box_delta=options.NO_BOX_DELTA,
        rpn_score=options.RPN_SCORE,
        soft_nms=options.SOFT_NMS,
        soft_nms_sigma=options.SOFT_NMS_SIGMA,
    )


def check_softmax(options: Mapping[str, object]) -> None:
    """Refuse losses other than softmax's.

    Args:
        options: Keyword arguments of Detectron2's ``FastRCNNOutputLayers``.

    Raises:
        ValueError: If a sigmoid or a federated loss is asked for.
    """
    for option in ("use_sigmoid_ce", "use_fed_loss"):
        if options.get(option):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.{option.upper()} is True, but text classes are trained "
                "with softmax over base classes; set it to False"
            )


def multiply_objectness(scores_RK1: Tensor, logits_R: Tensor, rpn_score: str) -> Tensor:
    """Average class scores geometrically with objectness.

    Args:
        scores_RK1: (R, K + 1) probabilities, background last.
        logits_R: (R,) objectness logits.
        rpn_score: "sigmoid", or "raw_logit": the logit itself stands for a probability.

    Returns:
        (R, K + 1); with "raw_logit" above 1 where the logit is, and NaN for a negative one.

    Reference: RegionCLIP, arXiv 2112.09106, section 4.2, names the geometric mean; the raw logit
    is that of the released code.
    """
    objectness_R = logits_R.sigmoid() if rpn_score == "sigmoid" else logits_R
    return (scores_RK1 * objectness_R[:, None]).sqrt()


class SelectionMixin:
    """Detections by ``self.selection``; stands before Detectron2's ``FastRCNNOutputLayers``."""

    selection: Selection

    def with_objectness(
        self, scores: Sequence[Tensor], proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Fold the proposals' objectness into class scores, if asked for.

        Args:
            scores: (Ri, K + 1) for each image.
            proposals: Proposals of the same images.

        Returns:
            Scores of the same shapes.

        Raises:
            ValueError: If proposals have no objectness.
        """
        if not self.selection.rpn_score:
            return tuple(scores)
        if not all(item.has("objectness_logits") for item in proposals):
            raise ValueError(
                "MODEL.OPEN_VOCAB.RPN_SCORE needs the objectness of proposals, which annotated "
                "boxes (MODEL.REGIONCLIP.PROPOSALS gt) and later stages of a cascade do not have; "
                "set it to ''"
            )
        return tuple(
            multiply_objectness(rows, item.objectness_logits, self.selection.rpn_score)
            for rows, item in zip(scores, proposals, strict=True)
        )

    def predict_boxes(
        self: Any, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Decode the boxes of detections.

        Args:
            predictions: Logits and (R, 4) deltas.
            proposals: Proposals of each image.

        Returns:
            (Ri, 4) XYXY px for each image.
        """
        if self.selection.no_box_delta:
            return tuple(item.proposal_boxes.tensor for item in proposals)
        boxes: tuple[Tensor, ...] = super().predict_boxes(predictions, proposals)  # type: ignore[misc]
        return boxes

    def inference(
        self: Any, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Choose detections.

        Args:
            predictions: (R, K + 1) logits and (R, 4) deltas.
            proposals: Proposals of each image.

        Returns:
            Detections of each image, and the numbers of their proposals.
        """
        if not self.selection.soft_nms:
            return super().inference(predictions, proposals)  # type: ignore[misc,no-any-return]
        boxes = self.predict_boxes(predictions, proposals)
        scores = self.predict_probs(predictions, proposals)
        chosen = [
            self._select(own_boxes, own_scores, item.image_size)
            for own_boxes, own_scores, item in zip(boxes, scores, proposals, strict=True)
        ]
        return [found for found, _ in chosen], [rows for _, rows in chosen]

    def _select(
        self: Any, boxes_R4: Tensor, scores_RK1: Tensor, image_size: tuple[int, int]
    ) -> tuple[Instances, Tensor]:
        """Threshold, soft-NMS and limit of one image; the threshold is not applied twice."""
        finite = boxes_R4.isfinite().all(dim=1) & scores_RK1.isfinite().all(dim=1)
        passing_RK = (scores_RK1[:, :-1] > self.test_score_thresh) & finite[:, None]
        rows, classes = passing_RK.nonzero(as_tuple=True)
        clipped = Boxes(boxes_R4[rows].clone())
        clipped.clip(image_size)
        kept, scores = batched_soft_nms(
            clipped.tensor,
            scores_RK1[rows, classes],
            classes,
            method=self.selection.soft_nms,
            sigma=self.selection.soft_nms_sigma,
            threshold=self.test_nms_thresh,
        )
        if self.test_topk_per_image >= 0:
            kept, scores = (part[: self.test_topk_per_image] for part in (kept, scores))
        found = Instances(image_size)
        found.pred_boxes, found.scores = clipped[kept], scores
        found.pred_classes = classes[kept]
        return found, rows[kept]
