"""Non-maximum suppression: stopped when enough boxes are kept, and soft, by lowered scores.

Legend: P, R boxes.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

# Up to as many boxes torchvision compares in one call, with the classes moved apart.
_ONE_CALL = {"cpu": 1000}
_ONE_CALL_ELSEWHERE = 25_000
SOFT_NMS_METHODS = ("gaussian", "linear", "hard")
# Scores that have decayed to this are dropped, as published for RegionCLIP.
PRUNE = 0.001


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


def batched_soft_nms(
    boxes_R4: Tensor,
    scores_R: Tensor,
    classes_R: Tensor,
    *,
    method: str = "gaussian",
    sigma: float = 0.5,
    threshold: float = 0.5,
    prune: float = PRUNE,
) -> tuple[Tensor, Tensor]:
    """Decay the scores of boxes that overlap a better one of their class.

    Args:
        boxes_R4: (R, 4) XYXY px; R may be 0.
        scores_R: (R,) finite scores, >= 0; they may exceed 1.
        classes_R: (R,) class numbers; boxes of other classes do not touch each other.
        method: "gaussian", exp(-IoU^2 / sigma); "linear", 1 - IoU above the threshold; "hard",
            0 above it.
        sigma: Width of the gaussian, > 0.
        threshold: IoU from which on the linear and the hard form act.
        prune: Boxes whose score is no more than this are dropped, when they are met.

    Returns:
        (K,) numbers of the boxes kept, best first, and (K,) their decayed scores.

    Raises:
        ValueError: If the method is unknown.

    Reference: Bodla et al., Soft-NMS, arXiv 1704.04503, Eq. 3 and section 3.
    """
    if method not in SOFT_NMS_METHODS:
        raise ValueError(f"method is {method!r}; it is one of {SOFT_NMS_METHODS}")
    numbers: list[Tensor] = []
    decayed: list[Tensor] = []
    # One box after another is chosen, for each of which a GPU would be waited for.
    device = boxes_R4.device
    boxes_R4, scores_R, classes_R = boxes_R4.cpu(), scores_R.cpu(), classes_R.cpu()
    for label in torch.unique(classes_R):
        member = (classes_R == label).nonzero()[:, 0]
        boxes, scores = boxes_R4[member].float(), scores_R[member].float()
        kept, scores = _soft_nms(boxes, scores, method, sigma, threshold, prune)
        numbers.append(member[kept])
        decayed.append(scores)
    if not numbers:
        return torch.zeros(0, dtype=torch.long, device=device), scores_R.to(device)
    values, order = torch.cat(decayed).sort(descending=True, stable=True)
    return torch.cat(numbers)[order].to(device), values.to(device, scores_R.dtype)


def _soft_nms(
    boxes: Tensor, scores: Tensor, method: str, sigma: float, threshold: float, prune: float
) -> tuple[Tensor, Tensor]:
    """Soft-NMS of one class: numbers kept and their scores, in the order of choice."""
    iou = box_iou(boxes, boxes)
    factors = _decay(iou, method, sigma, threshold)
    scores = scores.clone()
    open_boxes = torch.ones_like(scores, dtype=torch.bool)
    order, final = [], []
    for _ in range(len(boxes)):
        # Scores are never negative: -1 is no candidate.
        best = int(scores.masked_fill(~open_boxes, -1.0).argmax())
        if not open_boxes[best] or scores[best] <= prune:
            break
        order.append(best)
        final.append(scores[best].clone())
        open_boxes[best] = False
        scores = torch.where(open_boxes, scores * factors[best], scores)
    numbers = torch.tensor(order, dtype=torch.long, device=boxes.device)
    return numbers, torch.stack(final) if final else scores[:0]


def _decay(iou: Tensor, method: str, sigma: float, threshold: float) -> Tensor:
    if method == "gaussian":
        return torch.exp(-(iou**2) / sigma)
    overlap = iou > threshold
    return torch.where(overlap, (1.0 - iou) if method == "linear" else 0.0, 1.0)
