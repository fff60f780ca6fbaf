"""F-ViT's box predictor.

Legend: R regions, K classes, D joint embedding.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from clipself_d2.detection.text_predictor import TextFastRCNNOutputLayers
from clipself_d2.layers.score_fusion import fuse_passing, fuse_scores
from clipself_d2.layers.text_classifier import TextClassifier

# Field of the proposals that holds CLIP's (R, D) embeddings at test time.
CLIP_FIELD = "clip_embeddings"
# Fusing the scores of all of them costs next to nothing.
_FEW_CLASSES = 256
# Most scores that are worked on at once: on a CPU what its cache holds, elsewhere what fits.
_AT_ONCE = {"cpu": 2**21}
_AT_ONCE_ELSEWHERE = 2**28


class OpenVocabFastRCNNOutputLayers(TextFastRCNNOutputLayers):
    """Fast R-CNN's predictor with text embeddings for a classifier, as in F-ViT.

    Both branches have a hidden layer with ReLU; the class branch's is the region embedding. Boxes
    are coded without regard to the class, so that any vocabulary fits.

    Args:
        input_shape: Shape of a region's feature.
        classifier: Text classifier of width D; gives the number of classes.
        background_weight: Weight of background regions in the loss, >= 0.
        clip_scale: Multiplier of CLIP's cosine at test time, > 0.
        alpha: Exponent of CLIP's score for base classes and background, in [0, 1].
        beta: Exponent of CLIP's score for novel classes, in [0, 1].
        kwargs: Further keyword arguments of ``TextFastRCNNOutputLayers``.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        classifier: TextClassifier,
        background_weight: float = 0.6,
        clip_scale: float = 75.0,
        alpha: float = 0.1,
        beta: float = 0.8,
        **kwargs: object,
    ) -> None:
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
        self.clip_scale = clip_scale
        self.alpha, self.beta = alpha, beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read MODEL.OPEN_VOCAB, and what Detectron2's predictor reads."""
        options = cfg.MODEL.OPEN_VOCAB
        return {
            **super().from_config(cfg, input_shape),
            "clip_scale": options.CLIP_SCALE,
            "alpha": options.ENSEMBLE_ALPHA,
            "beta": options.ENSEMBLE_BETA,
        }

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: Sequence[Instances]
    ) -> tuple[Tensor, ...]:
        """Fuse the detector's probabilities with CLIP's.

        (Ri, K + 1) scores for each image, background last; a ValueError says that proposals
        have no ``clip_embeddings`` (Ri, D).
        """
        detector = F.softmax(predictions[0], dim=1)
        clip = F.softmax(self.clip_scale * self._clip_cosine(proposals), dim=1)
        base_mask = self.classifier.base_mask
        counts = [len(item) for item in proposals]
        scores = torch.split(fuse_scores(detector, clip, base_mask, self.alpha, self.beta), counts)
        return self.with_objectness(scores, proposals)

    def passing_scores(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Fuse the scores of those classes alone that can be above the threshold.

        As the parent; of few classes to the last bit what ``predict_probs`` gives, of more but for
        the last bit, which depends on how the processor groups powers.
        """
        # With the objectness the threshold is another one in every row.
        if self.rpn_score or self.classifier.num_classes <= _FEW_CLASSES:
            return super().passing_scores(predictions, proposals)
        logits_RK1, cosine_RK1 = predictions[0], self._clip_cosine(proposals)
        most = _AT_ONCE.get(logits_RK1.device.type, _AT_ONCE_ELSEWHERE)
        size = max(1, most // logits_RK1.shape[1])
        options = (self.alpha, self.beta, self.test_score_thresh)
        parts: list[tuple[Tensor, ...]] = []
        for logits, cosine in zip(logits_RK1.split(size), cosine_RK1.split(size), strict=True):
            detector = F.softmax(logits, dim=1)
            clip = F.softmax(self.clip_scale * cosine, dim=1)
            found = fuse_passing(detector, clip, self.classifier.base_mask, *options)
            parts.append((found[0] + len(parts) * size, *found[1:]))
        rows, classes, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        starts = [0, *itertools.accumulate(len(item) for item in proposals)]
        # Rows come in order, so that one search finds the ends of all images.
        ends = torch.searchsorted(rows, torch.tensor(starts, device=rows.device)).tolist()
        return [
            (rows[first:last] - start, classes[first:last], scores[first:last])
            for start, (first, last) in zip(starts[:-1], itertools.pairwise(ends), strict=True)
        ]

    def _clip_cosine(self, proposals: Sequence[Instances]) -> Tensor:
        """CLIP's cosines (R, K + 1) of all proposals."""
        if not all(item.has(CLIP_FIELD) for item in proposals):
            raise ValueError(
                f"proposals have no field {CLIP_FIELD!r} with the embeddings of their boxes; set "
                "MODEL.ROI_HEADS.NAME to OpenVocabROIHeads, which makes it"
            )
        return self.classifier.cosine(torch.cat([item.get(CLIP_FIELD) for item in proposals]))
