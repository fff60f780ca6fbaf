"""Scores of referring segmentation.

Legend: H W pixels of the picture.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

logger = logging.getLogger(__name__)

PRECISION_LEVELS = (50, 60, 70, 80, 90)
TASK = "ref_seg"


@dataclass(frozen=True)
class PairScore:
    """Pixels of one pair of image and sentence.

    Attributes:
        intersection: Pixels in both masks.
        union: Pixels in either.
        has_target: Whether the sentence refers to something.
        is_found: Whether the prediction has a pixel.
    """

    intersection: int
    union: int
    has_target: bool
    is_found: bool

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


class ReferringEvaluator(DatasetEvaluator):
    """Mean and overall IoU, precision at IoU thresholds.

    The result ``ref_seg`` has, in percent: ``mIoU``, the mean over pairs of image and sentence, the
    figure that CRIS's tables call IoU; ``oIoU``, all intersections over all unions; ``Pr@50`` to
    ``Pr@90``, the share of pairs with an IoU above the threshold; and ``n``, the number of pairs.

    Sentences may refer to nothing, as in gRefCOCO. An empty prediction of an empty target then has
    an IoU of 1, any other prediction one of 0, so that mIoU is GRES's gIoU and oIoU its cIoU;
    ``Pr@`` is the share among the pairs with a target, and left out without one; ``N-acc`` is the
    share of the sentences without a target that get an empty mask, and ``T-acc`` the share of the
    others that get one with a pixel. Where all sentences have a target, neither is reported.

    Counts of pixels are gathered as they are, so that neither batches nor uneven processes change
    a number.

    Args:
        distributed: Whether to join the pairs of all processes.

    Reference: Wang et al., CRIS, arXiv 2111.15174, section 4.1; Liu et al., GRES, arXiv 2306.00968,
    for gIoU, cIoU, N-acc and T-acc.
    """

    def __init__(self, *, distributed: bool = True) -> None:
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all pairs."""
        self._pairs: list[PairScore] = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Count the pixels of a batch of ``gt_mask`` and ``ref_mask``, (H, W) bool each."""
        for item, output in zip(inputs, outputs, strict=True):
            masks = (mask.detach().cpu().bool() for mask in (output["ref_mask"], item["gt_mask"]))
            self._pairs.append(score_pair(*masks))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Average over the pairs: ``{"ref_seg": {metric: value}}``.

        Empty in all processes but the first, and if no pair was seen.
        """
        pairs = self._pairs
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(pairs, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            pairs = [pair for part in parts for pair in part]
        if not pairs:
            logger.warning("No sentence was segmented; there is nothing to evaluate")
            return OrderedDict()
        return OrderedDict({TASK: summarise(pairs)})


def score_pair(predicted: Tensor, truth: Tensor) -> PairScore:
    """Count the pixels of a pair of masks, (H, W) bool each."""
    return PairScore(
        intersection=int((predicted & truth).sum()),
        union=int((predicted | truth).sum()),
        has_target=bool(truth.any()),
        is_found=bool(predicted.any()),
    )


def summarise(pairs: Sequence[PairScore]) -> dict[str, float]:
    """Average pairs, one at least, into the metrics of ``ReferringEvaluator``."""
    ious = [pair.iou for pair in pairs]
    # Without a pixel in any mask nothing is wrong: 100.
    union = sum(pair.union for pair in pairs)
    scores = {
        "mIoU": 100.0 * sum(ious) / len(ious),
        "oIoU": 100.0 * sum(pair.intersection for pair in pairs) / union if union else 100.0,
    }
    targeted = [pair for pair in pairs if pair.has_target]
    if targeted:
        for level in PRECISION_LEVELS:
            # Above the threshold, not at it, as in the released code of CRIS.
            scores[f"Pr@{level}"] = _percent([pair.iou > level / 100 for pair in targeted])
    if len(targeted) < len(pairs):
        scores["N-acc"] = _percent([not p.is_found for p in pairs if not p.has_target])
        if targeted:
            scores["T-acc"] = _percent([pair.is_found for pair in targeted])
    # Detectron2 prints every result as a float.
    scores["n"] = float(len(pairs))
    return scores


def _percent(hits: Sequence[bool]) -> float:
    return 100.0 * sum(hits) / len(hits)
