"""Assignment of masks to the truth, and the losses of what is assigned.

Legend: Q masks of an image, T true masks of an image, P points, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from detectron2.utils import comm
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class MaskLoss:
    """Weights of costs and losses, and where masks are compared.

    Attributes:
        cls: Cross entropy of the class, and probability in the assignment.
        mask: Binary cross entropy of points.
        dice: Dice loss of points.
        void: Weight of a mask without a truth in the cross entropy.
        num_points: Points of every mask in loss and assignment.
        oversample: Times as many random points are looked at to find the uncertain ones.
        importance: Share of the uncertain points.
    """

    cls: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    void: float = 0.1
    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75


@torch.no_grad()
def assign(
    logits_QK1: Tensor,
    masks_Qhw: Tensor,
    classes_T: Tensor,
    truth_THW: Tensor,
    rules: MaskLoss,
) -> tuple[Tensor, Tensor]:
    """Pair every true mask with one predicted mask, at the least total cost.

    Args:
        logits_QK1: Class logits, void last.
        masks_Qhw: Mask logits of any size.
        classes_T: Classes of the true masks; T may be 0.
        truth_THW: True masks, float or bool, over the same extent of the picture.
        rules: Weights of the three costs, and the number of random points at which masks are
            compared, the same for all.

    Returns:
        Numbers of predicted masks and of their true masks, int64, as many as the fewer of them.

    Reference: Mask2Former, arXiv 2112.01527, sections 3.3 and 4.
    """
    if not len(classes_T):
        empty = torch.zeros(0, dtype=torch.long, device=masks_Qhw.device)
        return empty, empty
    points = torch.rand(1, rules.num_points, 2, device=masks_Qhw.device)
    masks_QP = _sample(masks_Qhw.float(), points)
    truth_TP = _sample(truth_THW.float(), points)
    probability_QT = logits_QK1.float().softmax(-1)[:, classes_T]
    # Binary cross entropy of every pair is linear in the truth.
    inside_QP, outside_QP = F.softplus(-masks_QP), F.softplus(masks_QP)
    bce_QT = (inside_QP @ truth_TP.T + outside_QP @ (1 - truth_TP).T) / rules.num_points
    # Dice with 1 added above and below, so that empty masks agree.
    sigmoid_QP = masks_QP.sigmoid()
    overlap_QT = 2 * sigmoid_QP @ truth_TP.T
    dice_QT = 1 - (overlap_QT + 1) / (sigmoid_QP.sum(1)[:, None] + truth_TP.sum(1) + 1)
    cost_QT = rules.mask * bce_QT + rules.dice * dice_QT - rules.cls * probability_QT
    # Infinite costs, of diverged masks, make scipy raise a word about matrices.
    cost = torch.nan_to_num(cost_QT, nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()
    rows, columns = linear_sum_assignment(cost)
    device = masks_Qhw.device
    return torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)


def mask_losses(
    logits: Tensor,
    masks: Tensor,
    classes: Sequence[Tensor],
    truth: Sequence[Tensor],
    rules: MaskLoss,
) -> dict[str, Tensor]:
    """Losses of one layer's predictions, each already weighted.

    Args:
        logits: (N, Q, K + 1) class logits, void last.
        masks: (N, Q, h, w) mask logits.
        classes: (Ti,) classes of the true masks for each image.
        truth: (Ti, H, W) true masks for each image.
        rules: Weights and points.

    Returns:
        ``loss_cls``, averaged over masks by their weights; ``loss_mask`` and ``loss_dice``,
        averaged over the true masks of all processes.

    Reference: Mask2Former, arXiv 2112.01527, section 4.
    """
    pairs = [assign(*each, rules) for each in zip(logits, masks, classes, truth, strict=True)]
    void = logits.shape[-1] - 1
    target = torch.full(logits.shape[:2], void, dtype=torch.long, device=logits.device)
    for row, (rows, columns), labels in zip(target, pairs, classes, strict=True):
        row[rows] = labels[columns]
    class_weight = logits.new_ones(void + 1, dtype=torch.float32)
    class_weight[void] = rules.void
    loss_cls = F.cross_entropy(logits.float().transpose(1, 2), target, class_weight)
    matched = torch.cat([mask[rows] for mask, (rows, _) in zip(masks, pairs, strict=True)])
    # Images of a batch share one size here.
    wanted = torch.cat([t[columns] for t, (_, columns) in zip(truth, pairs, strict=True)])
    total = torch.tensor(float(sum(map(len, classes))), device=logits.device)
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    share = (total / comm.get_world_size()).clamp(min=1)
    points_MP, truth_MP = _uncertain_points(matched.float(), wanted.float(), rules)
    bce = F.binary_cross_entropy_with_logits(points_MP, truth_MP, reduction="none").mean(1).sum()
    sigmoid_MP = points_MP.sigmoid()
    overlap_M = 2 * (sigmoid_MP * truth_MP).sum(1)
    dice = (1 - (overlap_M + 1) / (sigmoid_MP.sum(1) + truth_MP.sum(1) + 1)).sum()
    return {
        "loss_cls": rules.cls * loss_cls,
        "loss_mask": rules.mask * bce / share,
        "loss_dice": rules.dice * dice / share,
    }


def _uncertain_points(
    masks_Mhw: Tensor, truth_MHW: Tensor, rules: MaskLoss
) -> tuple[Tensor, Tensor]:
    """Logits and truth (M, P) at points, most of them where the logits are near 0."""
    if not len(masks_Mhw):
        # Keeps the masks in the graph, so that processes without a truth have their gradients.
        empty = masks_Mhw.flatten(1)
        return empty, torch.zeros_like(empty)
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            masks_Mhw[:, None],
            lambda logits: -logits.abs(),
            rules.num_points,
            rules.oversample,
            rules.importance,
        )
        truth_MP = point_sample(truth_MHW[:, None], points, align_corners=False)[:, 0]
    return point_sample(masks_Mhw[:, None], points, align_corners=False)[:, 0], truth_MP


def _sample(masks_Mhw: Tensor, points_1P2: Tensor) -> Tensor:
    points = points_1P2.expand(len(masks_Mhw), -1, -1)
    sampled: Tensor = point_sample(masks_Mhw[:, None], points, align_corners=False)[:, 0]
    return sampled
