"""Losses of distillation; pure functions of tensors.

Legend: N images, D or C channels, T cells (row by row), R regions, K classes, L labels of an image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Of ``affinity_loss``.
REDUCTIONS = ("row_l2", "mse_mean", "mse_rowsum", "kl", "cross_entropy")


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
    student, teacher = (F.normalize(rows.float(), dim=1) for rows in (student_RD, teacher_RD))
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


def affinity(features_NTC: Tensor, rows_S: Tensor | None = None) -> Tensor:
    """Cosine of every pair of cells.

    Args:
        features_NTC: Any norm.
        rows_S: Numbers of the rows wanted, to save memory; None: all.

    Returns:
        (N, S, T) float32; of all rows symmetric, with ones on the diagonal.
    """
    unit = F.normalize(features_NTC.float(), dim=-1)
    rows = unit if rows_S is None else unit[:, rows_S]
    return rows @ unit.transpose(-1, -2)


def affinity_loss(
    student_NST: Tensor,
    teacher_NST: Tensor,
    *,
    reduction: str = "row_l2",
    temperature: float = 0.2,
    real_NS: Tensor | None = None,
    real_NT: Tensor | None = None,
) -> Tensor:
    """Compare affinities row by row.

    Args:
        student_NST: S rows of the student's affinity, in [-1, 1].
        teacher_NST: The same rows of the teacher's.
        reduction: "row_l2" (root of the sum of squares of a row, grows like the root of T),
            "mse_mean" (mean of squares), "mse_rowsum" (sum of squares of a row), "kl" (of the rows'
            softmax, teacher to student), or "cross_entropy" (the same of rows that are stretched to
            0 to 1).
        temperature: Divisor of "kl" and "cross_entropy", > 0.
        real_NS: Bool, rows that count; None: all.
        real_NT: Bool, columns that count; None: all.

    Returns:
        Scalar float32, the mean over rows that count.

    Reference: row_l2 is DeCLIP's, arXiv 2505.04410; kl that of its extension, arXiv 2508.11256;
    cross_entropy that of R-SC-CLIPSelf, arXiv 2504.02328, as a later work gives it. Differs: cells
    of padding take no part.
    """
    rows = torch.ones_like(student_NST[..., 0], dtype=torch.bool) if real_NS is None else real_NS
    if real_NT is None:
        real_NT = torch.ones_like(student_NST[:, 0], dtype=torch.bool)
    columns = real_NT[:, None]
    if reduction in ("kl", "cross_entropy"):
        if reduction == "cross_entropy":
            student_NST, teacher_NST = (
                _stretch(part, columns) for part in (student_NST, teacher_NST)
            )
        student, teacher = (
            (part / temperature).masked_fill(~columns, -1e4).log_softmax(-1)
            for part in (student_NST, teacher_NST)
        )
        value = -(teacher.exp() * student).sum(-1)
        if reduction == "kl":
            value = value + (teacher.exp() * teacher).sum(-1)
    else:
        squares = ((student_NST - teacher_NST) * columns).square().sum(-1)
        if reduction == "row_l2":
            # The root's slope at 0 is infinite; rows that agree get none.
            agree = squares == 0
            value = squares.masked_fill(agree, 1.0).sqrt().masked_fill(agree, 0.0)
        elif reduction == "mse_mean":
            value = squares / real_NT.sum(-1, keepdim=True)
        else:
            value = squares
    return (value * rows).sum() / rows.sum().clamp(min=1)


def _stretch(part: Tensor, columns: Tensor) -> Tensor:
    """Every row to 0 to 1, over the columns that count."""
    least = part.masked_fill(~columns, float("inf")).amin(-1, keepdim=True)
    most = part.masked_fill(~columns, float("-inf")).amax(-1, keepdim=True)
    return (part - least) / (most - least).clamp(min=1e-6)


def grouped_kl(
    student_RK: Tensor, teacher_RK: Tensor, *, num_things: int, threshold: float = 0.3
) -> Tensor:
    """Divergence of class distributions, in which things compete with things alone.

    Args:
        student_RK: The student's logits; the first ``num_things`` classes are things.
        teacher_RK: The teacher's.
        num_things: Number of things.
        threshold: Probability that a region's best class exceeds by the teacher to take part.

    Returns:
        (R,) float32, the regions' divergence over the number of regions of their group; 0 where
        a region takes no part.

    Reference: DenseVLM, arXiv 2412.06244: things are renormalised among themselves, stuff is
    compared over all classes, each group's mean is taken and both are added.
    """
    student, teacher = student_RK.float(), teacher_RK.float()
    best, label = teacher.softmax(1).max(1)
    # Zeros that keep the student's graph.
    loss_R = student.sum(1) * 0.0
    for columns, mine in (
        (slice(num_things), label < num_things),
        (slice(None), label >= num_things),
    ):
        mine = mine & (best > threshold)
        # Of all regions: picking some out would wait for the device to count them.
        ours, theirs = student[:, columns].log_softmax(1), teacher[:, columns].log_softmax(1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
        loss_R = loss_R + torch.where(mine, divergence, 0.0) / mine.sum().clamp(min=1)
    return loss_R


def spatial_target(
    semantic_LT: Tensor, affinity_TT: Tensor, *, top: int = 7, shares: tuple[float, float]
) -> Tensor:
    """Mix maps of texts with the surroundings of their strongest cells.

    Args:
        semantic_LT: Cosine of every text and cell.
        affinity_TT: Affinity of the cells, of a vision foundation model.
        top: Strongest cells of a text whose rows are averaged; fewer where there are fewer.
        shares: Weight of the maps, and of the averaged rows.

    Returns:
        (L, T) float32.

    Reference: SynCLIP's SAR, arXiv 2607.11008.
    """
    strongest = semantic_LT.topk(min(top, semantic_LT.shape[1]), dim=1).indices
    return shares[0] * semantic_LT + shares[1] * affinity_TT[strongest].mean(1)


def map_match(
    student_LT: Tensor, target_LT: Tensor, *, kind: str = "huber_kl", delta: float = 0.1
) -> Tensor:
    """Compare maps of texts.

    Args:
        student_LT: The student's, cosines.
        target_LT: What they should be.
        kind: "huber_kl" (Huber summed over cells, and 0.1 times the divergence of the target from
            the student of their softmax over the cells), or "l2" (mean of squares).
        delta: Where Huber's loss becomes linear.

    Returns:
        (L,) float32.

    Reference: SynCLIP, arXiv 2607.11008; huber_kl is its script's, l2 its paper's.
    """
    if kind == "l2":
        return (student_LT - target_LT).square().mean(1)
    huber = F.huber_loss(student_LT, target_LT, reduction="none", delta=delta).sum(1)
    ours, theirs = student_LT.log_softmax(1), target_LT.log_softmax(1)
    return huber + 0.1 * F.kl_div(theirs, ours, reduction="none", log_target=True).sum(1)
