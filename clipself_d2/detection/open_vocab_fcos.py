"""FCOS whose classes are text."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from clipself_d2.detection.dense_text import (
    TextClassesMixin,
    TextHeadMixin,
    training_classifier,
)


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
