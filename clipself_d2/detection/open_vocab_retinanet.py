"""RetinaNet whose classes are text."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead

from clipself_d2.detection.dense_text import (
    TextClassesMixin,
    TextHeadMixin,
    training_classifier,
)


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
