"""Box predictor that reads a region's CLIP embedding itself.

Legend: R regions, K classes, D joint embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor

from clipself_d2.detection.text_predictor import TextFastRCNNOutputLayers
from clipself_d2.layers.text_classifier import TextClassifier


class EmbeddingFastRCNNOutputLayers(TextFastRCNNOutputLayers):
    """Fast R-CNN's predictor on region embeddings, as in RegionCLIP.

    Classes are scaled cosines of the embedding to the text, boxes a linear function of it; nothing
    stands between, so that an untrained detector is CLIP.

    Args:
        input_shape: Shape of a region's embedding; its channels are D.
        classifier: Text classifier of width D; gives the number of classes.
        kwargs: Further keyword arguments of ``TextFastRCNNOutputLayers``.

    Reference: RegionCLIP, arXiv 2112.09106, section 3.3.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, classifier: TextClassifier, **kwargs: object
    ) -> None:
        super().__init__(input_shape, classifier=classifier, **kwargs)
        self.cls_score = classifier

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Score every class, base and novel alike: (Ri, K + 1) for each image, background last."""
        counts = [len(item) for item in proposals]
        scores = torch.split(F.softmax(predictions[0], dim=1), counts)
        return self.with_objectness(scores, proposals)
