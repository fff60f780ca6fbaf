"""From scored masks of a picture to its panoptic map, its semantic map and its instances.

Legend: Q masks, K classes, H W pixels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

# Pixels of a mask have at least this probability.
_INSIDE = 0.5


@dataclass(frozen=True)
class MergeRules:
    """Which masks become segments and instances.

    Attributes:
        min_score: Masks whose class scores no more are no segment.
        min_overlap: Share of its own pixels that a mask must win to be a segment.
        num_instances: Most instances of a picture.
    """

    min_score: float = 0.0
    min_overlap: float = 0.8
    num_instances: int = 100


def panoptic_map(
    log_probs_QK1: Tensor, masks_QHW: Tensor, thing_mask: Tensor, rules: MergeRules | None = None
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give every pixel to one mask.

    Args:
        log_probs_QK1: Log-probabilities (or logits) of the classes, void last.
        masks_QHW: Logits of the masks at the picture's size.
        thing_mask: (K,) True for things.
        rules: Which masks are kept.

    Returns:
        (H, W) int32 of segment ids, 0 where there is none, and Detectron2's ``segments_info``:
        ``id``, ``category_id`` (contiguous), ``isthing``, and the class's ``score``. Segments of
        one kind of stuff are one, with the score of the first.

    Reference: MaskFormer, arXiv 2107.06278, section 3.4, as in Mask2Former and FC-CLIP.
    """
    rules = rules or MergeRules()
    score_Q, label_Q = log_probs_QK1.softmax(-1).max(-1)
    keep_Q = (label_Q != log_probs_QK1.shape[-1] - 1) & (score_Q > rules.min_score)
    score_Q, label_Q, prob_QHW = score_Q[keep_Q], label_Q[keep_Q], masks_QHW[keep_Q].sigmoid()
    ids_HW = torch.zeros(masks_QHW.shape[-2:], dtype=torch.int32, device=masks_QHW.device)
    segments: list[dict[str, Any]] = []
    if not len(label_Q):
        return ids_HW, segments
    # A mask may win pixels outside of itself; min_overlap counts them too, as published.
    winner_HW = (score_Q[:, None, None] * prob_QHW).argmax(0)
    stuff_ids: dict[int, int] = {}
    for number, (label, score) in enumerate(zip(label_Q.tolist(), score_Q.tolist(), strict=True)):
        won_HW, inside_HW = winner_HW == number, prob_QHW[number] >= _INSIDE
        region_HW = won_HW & inside_HW
        own = int(inside_HW.sum())
        if not own or not region_HW.any() or int(won_HW.sum()) / own < rules.min_overlap:
            continue
        is_thing = bool(thing_mask[label])
        if not is_thing and label in stuff_ids:
            ids_HW[region_HW] = stuff_ids[label]
            continue
        segment = len(segments) + 1
        ids_HW[region_HW] = segment
        if not is_thing:
            stuff_ids[label] = segment
        segments.append({"id": segment, "category_id": label, "isthing": is_thing, "score": score})
    return ids_HW, segments


def semantic_map(log_probs_QK1: Tensor, masks_QHW: Tensor) -> Tensor:
    """Sum the masks of every class, each weighted by its probability: (K, H, W) scores.

    Log-probabilities (or logits) have void last, and masks are logits.

    Reference: MaskFormer, arXiv 2107.06278, section 3.4.
    """
    probs_QK = log_probs_QK1.softmax(-1)[..., :-1]
    return torch.einsum("qk,qhw->khw", probs_QK, masks_QHW.sigmoid())


def instances_of(
    log_probs_QK1: Tensor, masks_QHW: Tensor, thing_mask: Tensor, *, most: int = 100
) -> Instances:
    """Take the best pairs of a mask and a class as instances.

    Args:
        log_probs_QK1: Log-probabilities (or logits) of the classes, void last.
        masks_QHW: Logits of the masks at the picture's size.
        thing_mask: (K,) True for things; pairs with stuff are dropped.
        most: Pairs that are looked at, the best of all Q x K.

    Returns:
        Instances with ``pred_masks`` (bool), ``pred_boxes`` around them, ``scores``
        (probability of the class times the mean probability inside of the mask) and
        ``pred_classes``; masks without a pixel are left out.

    Reference: Mask2Former, arXiv 2112.01527, appendix; boxes are ours, theirs are zeros.
    """
    probs_QK = log_probs_QK1.softmax(-1)[..., :-1]
    num_classes = probs_QK.shape[1]
    # A pair's number is mask * K + class.
    score_P, pair_P = probs_QK.flatten().topk(min(most, probs_QK.numel()), sorted=False)
    label_P, mask_P = pair_P % num_classes, pair_P // num_classes
    is_thing_P = thing_mask.to(label_P.device)[label_P]
    score_P, label_P, mask_P = score_P[is_thing_P], label_P[is_thing_P], mask_P[is_thing_P]
    # Several classes may name one mask.
    used_Q, back_P = mask_P.unique(return_inverse=True)
    prob_UHW = masks_QHW[used_Q].sigmoid()
    inside_UHW = masks_QHW[used_Q] > 0
    pixels_U = inside_UHW.flatten(1).sum(1)
    quality_U = (prob_UHW * inside_UHW).flatten(1).sum(1) / pixels_U.clamp(min=1)
    keep_P = pixels_U[back_P] > 0
    back_P, score_P, label_P = back_P[keep_P], score_P[keep_P], label_P[keep_P]
    result = Instances(tuple(masks_QHW.shape[-2:]))
    result.pred_masks = inside_UHW[back_P]
    result.pred_boxes = boxes_around(result.pred_masks)
    result.scores = score_P * quality_U[back_P]
    result.pred_classes = label_P
    return result


def boxes_around(masks_NHW: Tensor) -> Boxes:
    """Tight boxes of masks that have a pixel each.

    As Detectron2's ``BitMasks.get_bounding_boxes``, but where the masks are, and without asking a
    GPU for every one of them.
    """
    x_ends, y_ends = (_ends(masks_NHW.any(dim=axis)) for axis in (1, 2))
    return Boxes(torch.stack([x_ends[0], y_ends[0], x_ends[1], y_ends[1]], dim=1).float())


def _ends(hit_NL: Tensor) -> tuple[Tensor, Tensor]:
    """First True of each row, and the place after the last."""
    hit_NL = hit_NL.int()
    return hit_NL.argmax(1), hit_NL.shape[1] - hit_NL.flip(1).argmax(1)
