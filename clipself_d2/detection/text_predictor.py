"""Fast R-CNN's predictor with text for classes: its losses, and from scores to detections.

Legend: R regions, K classes.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from clipself_d2.detection.base_losses import base_only_loss, log_accuracy, mask_novel
from clipself_d2.layers.nms import batched_soft_nms, limited_nms
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.text_embeddings import build_text_classifier, training_embeddings


class TextFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Fast R-CNN's predictor with text for classes: its options, its losses and its detections.

    Subclasses put the classifier where they read the embedding, and score regions. Boxes are coded
    without regard to the class, so that any vocabulary fits.

    Args:
        input_shape: Shape of a region's feature.
        box2box_transform: Coding of boxes.
        classifier: Text classifier; gives the number of classes.
        background_weight: Weight of background regions in the loss, >= 0.
        focal_gamma: Exponent, >= 0, of the classification loss's factor (1 - p); 0 leaves it out.
        normalize_weights: Whether that loss is divided by the sum of the regions' weights instead
            of their number.
        refine_boxes: Whether detections have the regressor's deltas; False takes the proposals.
        rpn_score: "" for class scores alone; "sigmoid" or "raw_logit" for their geometric mean with
            the proposals' objectness.
        soft_nms: Method of ``batched_soft_nms``, or "" for Detectron2's NMS.
        soft_nms_sigma: Width of its gaussian, in squared IoU.
        kwargs: Further keyword arguments of ``FastRCNNOutputLayers``.

    Raises:
        ValueError: If a loss other than softmax's is asked for.
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
        focal_gamma: float = 0.0,
        normalize_weights: bool = False,
        refine_boxes: bool = True,
        rpn_score: str = "",
        soft_nms: str = "",
        soft_nms_sigma: float = 0.5,
        **kwargs: object,
    ) -> None:
        for option in ("use_sigmoid_ce", "use_fed_loss"):
            if kwargs.get(option):
                raise ValueError(
                    f"MODEL.ROI_BOX_HEAD.{option.upper()} is True, but text classes are trained "
                    "with softmax over base classes; set it to False"
                )
        super().__init__(
            input_shape,
            box2box_transform=box2box_transform,
            num_classes=classifier.num_classes,
            cls_agnostic_bbox_reg=True,
            **kwargs,
        )
        self.background_weight = background_weight
        self.focal_gamma, self.normalize_weights = focal_gamma, normalize_weights
        self.refine_boxes, self.rpn_score = refine_boxes, rpn_score
        self.soft_nms, self.soft_nms_sigma = soft_nms, soft_nms_sigma

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.OPEN_VOCAB, and what Detectron2's predictor reads."""
        kwargs: dict[str, object] = super().from_config(cfg, input_shape)
        # Both follow from the vocabulary.
        del kwargs["num_classes"], kwargs["cls_agnostic_bbox_reg"]
        options = cfg.MODEL.OPEN_VOCAB
        kwargs["classifier"] = build_text_classifier(
            training_embeddings(cfg),
            background_mode=options.BACKGROUND,
            scale=options.SCALE,
            learn_scale=options.LEARN_SCALE,
        )
        return {
            **kwargs,
            "background_weight": options.BACKGROUND_WEIGHT,
            "focal_gamma": options.FOCAL_GAMMA,
            "normalize_weights": options.NORMALIZE_WEIGHTS,
            "refine_boxes": options.REFINE_BOXES,
            "rpn_score": options.RPN_SCORE,
            "soft_nms": options.SOFT_NMS,
        }

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
        """Losses over base classes, background and boxes: ``loss_cls`` and ``loss_box_reg``.

        From (R, K + 1) logits and (R, 4) deltas of sampled proposals; a ValueError says that one is
        labelled with a class that is not trained.
        """
        logits, deltas = predictions
        labels = torch.cat([item.gt_classes for item in proposals])
        base_mask = self.classifier.base_mask
        loss = base_only_loss(
            logits,
            labels,
            base_mask,
            self.background_weight,
            gamma=self.focal_gamma,
            normalize=self.normalize_weights,
        )
        log_accuracy(mask_novel(logits.detach(), base_mask), labels)
        # Images without objects have no such field, and none of their boxes is read.
        aims = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
        box_loss = self.box_reg_loss(
            Boxes.cat([item.proposal_boxes for item in proposals]).tensor,
            Boxes.cat(aims).tensor,
            deltas,
            labels,
        )
        losses = {"loss_cls": loss, "loss_box_reg": box_loss}
        return {name: value * self.loss_weight.get(name, 1.0) for name, value in losses.items()}

    def with_objectness(
        self, scores: Sequence[Tensor], proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Fold the proposals' objectness into class scores (Ri, K + 1), if asked for."""
        if not self.rpn_score:
            return tuple(scores)
        if not all(item.has("objectness_logits") for item in proposals):
            raise ValueError(
                "MODEL.OPEN_VOCAB.RPN_SCORE needs the objectness of proposals, which annotated "
                "boxes and later stages of a cascade do not have; set it to ''"
            )
        return tuple(
            multiply_objectness(rows, item.objectness_logits, self.rpn_score)
            for rows, item in zip(scores, proposals, strict=True)
        )

    def predict_boxes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Decode the boxes of detections: (Ri, 4) XYXY px for each image."""
        if not self.refine_boxes:
            return tuple(item.proposal_boxes.tensor for item in proposals)
        boxes: tuple[Tensor, ...] = super().predict_boxes(predictions, proposals)
        return boxes

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Choose the detections of each image, and the numbers of their proposals."""
        boxes = self.predict_boxes(predictions, proposals)
        chosen = [
            self._select(own_boxes, *passing, item.image_size)
            for own_boxes, passing, item in zip(
                boxes, self.passing_scores(predictions, proposals), proposals, strict=True
            )
        ]
        return [found for found, _ in chosen], [rows for _, rows in chosen]

    def passing_scores(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Score regions, and keep what is above the threshold.

        For each image region numbers, class numbers and scores, (P,) each, by region and class; a
        region with a score that is not finite has none.
        """
        found = []
        for scores_RK1 in self.predict_probs(predictions, proposals):
            finite_R = scores_RK1.isfinite().all(dim=1)
            passing_RK = (scores_RK1[:, :-1] > self.test_score_thresh) & finite_R[:, None]
            rows, classes = passing_RK.nonzero(as_tuple=True)
            found.append((rows, classes, scores_RK1[rows, classes]))
        return found

    def _select(
        self,
        boxes_R4: Tensor,
        rows: Tensor,
        classes: Tensor,
        scores: Tensor,
        image_size: tuple[int, int],
    ) -> tuple[Instances, Tensor]:
        """NMS and limit of one image; the threshold is not applied twice."""
        # Masks would each make the host wait for the device; numbers do so once.
        finite = boxes_R4.isfinite().all(dim=1)[rows].nonzero()[:, 0]
        rows, classes, scores = rows[finite], classes[finite], scores[finite]
        boxes = clip_boxes_to_image(boxes_R4[rows], image_size)
        limit = self.test_topk_per_image
        if self.soft_nms:
            kept, scores = batched_soft_nms(
                boxes,
                scores,
                classes,
                method=self.soft_nms,
                sigma=self.soft_nms_sigma,
                threshold=self.test_nms_thresh,
            )
            # Detectron2's -1 is no limit.
            if limit >= 0:
                kept, scores = kept[:limit], scores[:limit]
        else:
            kept = limited_nms(boxes, scores, classes, self.test_nms_thresh, limit)
            scores = scores[kept]
        found = Instances(image_size)
        found.pred_boxes, found.scores = Boxes(boxes[kept]), scores
        found.pred_classes = classes[kept]
        return found, rows[kept]


def multiply_objectness(scores_RK1: Tensor, logits_R: Tensor, rpn_score: str) -> Tensor:
    """Average class scores (R, K + 1) geometrically with objectness logits (R,).

    "sigmoid" takes their probability; "raw_logit" the logit itself, so that scores are above 1
    where it is, and NaN for a negative one.

    Reference: RegionCLIP, arXiv 2112.09106, section 4.2, names the geometric mean; the raw logit is
    that of the released code.
    """
    objectness_R = {"sigmoid": logits_R.sigmoid(), "raw_logit": logits_R}[rpn_score]
    return (scores_RK1 * objectness_R[:, None]).sqrt()
