"""Losses of distillation; pure functions.

Legend: R regions, D joint embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_distances(student_RD: Tensor, teacher_RD: Tensor) -> Tensor:
    """One minus the cosine of each pair.

    Args:
        student_RD: (R, D), any norm; R may be 0.
        teacher_RD: (R, D), any norm.

    Returns:
        (R,) float32 in [0, 2].

    Raises:
        ValueError: If shapes differ.

    Reference: CLIPSelf, arXiv 2310.01403, Eq. 1; its loss is the mean over all regions.
    """
    if student_RD.shape != teacher_RD.shape:
        raise ValueError(
            f"student regions are {tuple(student_RD.shape)}, the teacher's "
            f"{tuple(teacher_RD.shape)}"
        )
    student, teacher = (
        F.normalize(student_RD.float(), dim=1),
        F.normalize(teacher_RD.float(), dim=1),
    )
    return 1.0 - (student * teacher).sum(1)


@torch.no_grad()
def constant_prediction_loss(teacher_RD: Tensor) -> float:
    """Loss of the best prediction that is the same for all regions, a yardstick.

    Args:
        teacher_RD: (R, D), any norm.

    Returns:
        ``1 - |mean of unit vectors|``; 0 without regions.
    """
    if not len(teacher_RD):
        return 0.0
    return 1.0 - float(F.normalize(teacher_RD.float(), dim=1).mean(0).norm())
