"""Non-maximum suppression that stops when enough boxes are kept."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

# Up to as many boxes torchvision compares in one call, with the classes moved apart.
_ONE_CALL = {"cpu": 1000}
_ONE_CALL_ELSEWHERE = 25_000


def limited_nms(
    boxes_P4: Tensor, scores_P: Tensor, classes_P: Tensor, threshold: float, limit: int
) -> Tensor:
    """Suppress boxes (XYXY) within each class, and keep the best ``limit`` of all; negative: all.

    A box is suppressed by better ones alone, so that the best boxes are enough if ``limit`` of them
    are kept; where they are not, more are taken. Gives their numbers, best first: the beginning of
    what torchvision's ``batched_nms`` gives for all boxes, which leaves the order of equal scores
    open.
    """
    total, count = len(boxes_P4), 4 * limit
    if limit <= 0 or total <= _ONE_CALL.get(boxes_P4.device.type, _ONE_CALL_ELSEWHERE):
        kept: Tensor = batched_nms(boxes_P4.float(), scores_P, classes_P, threshold)
        return kept if limit < 0 else kept[:limit]
    while True:
        # All boxes that share the last score.
        least = scores_P.topk(min(count, total)).values[-1]
        best = (scores_P >= least).nonzero()[:, 0]
        boxes, scores, classes = boxes_P4[best].float(), scores_P[best], classes_P[best]
        kept = best[_class_by_class(boxes, scores, classes, threshold)]
        if len(kept) >= limit or count >= total:
            return kept[:limit]
        count *= 4


def _class_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    order = classes.argsort(stable=True)
    sizes = classes[order].unique_consecutive(return_counts=True)[1].tolist()  # type: ignore[no-untyped-call]
    groups = [
        rows if len(rows) == 1 else rows[nms(boxes[rows], scores[rows], threshold)]
        for rows in order.split(sizes)  # type: ignore[no-untyped-call]
    ]
    # In the order of the boxes, so that equal scores keep it in the stable sort.
    kept = torch.cat(groups).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]
