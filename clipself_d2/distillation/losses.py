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


def sample_classes(
    label_R: Tensor, num_classes: int, num_sampled: int, generator: torch.Generator
) -> Tensor:
    """Draw the classes that a batch is scored against: its own, and others at random.

    Args:
        label_R: Class index of every region, on the CPU.
        num_classes: Number of all classes.
        num_sampled: Number of classes wanted; more if the batch has more of its own.
        generator: Source of randomness, on the CPU.

    Returns:
        (S,) int64 class indices without repetition, the batch's own first, in rising order.

    Reference: the region-text baseline of CLIPSelf, arXiv 2310.01403, section 4.2.
    """
    own = label_R.unique()
    missing = min(num_sampled, num_classes) - len(own)
    if missing <= 0:
        return own
    others = torch.ones(num_classes, dtype=torch.bool)
    others[own] = False
    rest = others.nonzero()[:, 0]
    return torch.cat([own, rest[torch.randperm(len(rest), generator=generator)[:missing]]])


def federated_bce(
    region_RD: Tensor, text_KD: Tensor, label_R: Tensor, sampled_S: Tensor, scale: float
) -> Tensor:
    """Binary cross-entropy of every region against some of the classes.

    Args:
        region_RD: Region embeddings, any norm; R may be 0.
        text_KD: Class embeddings, unit norm.
        label_R: Class index of every region.
        sampled_S: Classes that take part; every label is one of them.
        scale: Multiplier of the cosine.

    Returns:
        (R,) float32, the sum over the sampled classes.

    Reference: the region-text baseline of CLIPSelf, arXiv 2310.01403, section 4.2.
    """
    target_RS = (label_R[:, None] == sampled_S[None]).float()
    region = F.normalize(region_RD.float(), dim=1)
    logit_RS = scale * region @ text_KD[sampled_S].float().T
    return F.binary_cross_entropy_with_logits(logit_RS, target_RS, reduction="none").sum(1)
