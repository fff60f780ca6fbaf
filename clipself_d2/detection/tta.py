"""Test-time augmentation for detectors whose number of classes follows the vocabulary."""

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Instances
from torch import Tensor, nn

from clipself_d2.layers.text_classifier import TextClassifier


class VocabularyRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's test-time augmentation that asks the model for its number of classes.

    Detectron2's merges the detections of all copies of an image into a table of
    MODEL.ROI_HEADS.NUM_CLASSES columns, which a change of vocabulary knows nothing of.

    Args:
        cfg: The whole config; TEST.AUG chooses the copies.
        model: A GeneralizedRCNN, with a text classifier or without.
        batch_size: Copies that are run together.

    Raises:
        AssertionError: Detectron2's, if the model is no GeneralizedRCNN, has keypoints, or reads
            proposals from a file.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, batch_size: int = 3) -> None:
        super().__init__(cfg, model, batch_size=batch_size)
        # A clone of Detectron2's own making, which may be frozen.
        self.cfg.defrost()

    def _merge_detections(
        self,
        all_boxes: Tensor,
        all_scores: list[Tensor],
        all_classes: list[Tensor],
        shape_hw: tuple[int, int],
    ) -> Instances:
        self.cfg.MODEL.ROI_HEADS.NUM_CLASSES = count_classes(self.model)
        merged: Instances = super()._merge_detections(all_boxes, all_scores, all_classes, shape_hw)
        return merged


def count_classes(model: GeneralizedRCNN) -> int:
    """Count the classes that a detector tells apart now, by its text classifier or its heads."""
    for module in model.modules():
        if isinstance(module, TextClassifier):
            return int(module.num_classes)
    return int(model.roi_heads.num_classes)


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a detector, in the same mode, where TEST.AUG.ENABLED asks for it."""
    if not cfg.TEST.AUG.ENABLED:
        return model
    wrapped: nn.Module = VocabularyRCNNWithTTA(cfg, model).train(model.training)
    return wrapped
