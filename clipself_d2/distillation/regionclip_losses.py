"""Losses of RegionCLIP's pre-training; pure functions.

Legend: R regions, C concepts, N image-text pairs, D joint embedding.

Reference: Zhong et al., RegionCLIP, arXiv 2112.09106, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_logits(first_RD: Tensor, second_CD: Tensor, temperature: float) -> Tensor:
    """Cosine of every pair over the temperature.

    Args:
        first_RD: Any norm; R may be 0.
        second_CD: Any norm.
        temperature: Divisor of the cosine, > 0; 0.01 as published.

    Returns:
        (R, C) float32.
    """
    first, second = F.normalize(first_RD.float(), dim=1), F.normalize(second_CD.float(), dim=1)
    return first @ second.T / temperature


@dataclass(frozen=True)
class PseudoLabels:
    """What the teacher says of the regions.

    Attributes:
        keep: (R,) bool, regions that take part.
        log_probs: (K, C) float32 log-probabilities of the kept regions.
        targets: (K,) int64, their most probable concept.
    """

    keep: Tensor
    log_probs: Tensor
    targets: Tensor

    def split(self, counts: Sequence[int]) -> "list[PseudoLabels]":
        """Cut into those of some regions each.

        Args:
            counts: Numbers of regions; their sum is R.

        Returns:
            One for each number.
        """
        keeps = self.keep.split(list(counts))
        kept = [int(keep.sum()) for keep in keeps]
        rows = zip(keeps, self.log_probs.split(kept), self.targets.split(kept), strict=True)
        return [PseudoLabels(*row) for row in rows]


@torch.no_grad()
def pseudo_labels(
    teacher_RD: Tensor, concepts_CD: Tensor, *, threshold: float, temperature: float = 0.01
) -> PseudoLabels:
    """Let the teacher name the regions.

    Args:
        teacher_RD: The teacher's region features, any norm; R may be 0.
        concepts_CD: Its embeddings of the concepts, any norm.
        threshold: Probability that the best concept of a kept region exceeds. Where no region
            does, all are kept.
        temperature: Divisor of the cosine.

    Returns:
        The pseudo labels, without gradient.
    """
    log_probs = F.log_softmax(cosine_logits(teacher_RD, concepts_CD, temperature), dim=1)
    best, targets = log_probs.max(dim=1)
    keep = best.exp() > threshold
    if not bool(keep.any()):
        keep = torch.ones_like(keep)
    return PseudoLabels(keep, log_probs[keep], targets[keep])


def region_distillation(
    student_KD: Tensor, concepts_CD: Tensor, teacher_log_probs_KC: Tensor, temperature: float = 0.01
) -> Tensor:
    """Kullback-Leibler divergence of the student's distribution over concepts from the teacher's.

    Args:
        student_KD: The student's features of the kept regions, any norm; K may be 0.
        concepts_CD: The student's embeddings of the concepts, any norm.
        teacher_log_probs_KC: The teacher's log-probabilities.
        temperature: Divisor of the student's cosine.

    Returns:
        (K,) float32, KL(teacher || student) of every region.
    """
    student = F.log_softmax(cosine_logits(student_KD, concepts_CD, temperature), dim=1)
    return F.kl_div(student, teacher_log_probs_KC, reduction="none", log_target=True).sum(1)


def concept_contrastive(
    student_KD: Tensor,
    concepts_CD: Tensor,
    targets_K: Tensor,
    temperature: float = 0.01,
    batch_targets_M: Tensor | None = None,
) -> Tensor:
    """Contrast regions with the concepts of all regions of the batch.

    Regions of one concept are positives of one another: a region's loss is minus the logarithm of
    the share that they have in the softmax. A concept counts in the denominator as often as the
    batch has it.

    Args:
        student_KD: The student's features of the kept regions, any norm; K may be 0.
        concepts_CD: The student's embeddings of the concepts, any norm.
        targets_K: Concept of every region.
        temperature: Divisor of the cosine.
        batch_targets_M: Concepts of the whole batch's regions; None where the regions are all.

    Returns:
        (K,) float32.
    """
    batch_M = targets_K if batch_targets_M is None else batch_targets_M
    logits_KM = cosine_logits(student_KD, concepts_CD[batch_M], temperature)
    return multi_positive_loss(logits_KM, targets_K[:, None] == batch_M[None])


def multi_positive_loss(logits_KM: Tensor, positive_KM: Tensor) -> Tensor:
    """Cross-entropy with several right answers, whose probabilities are added.

    Args:
        logits_KM: Any scale.
        positive_KM: Bool; every row has at least one positive.

    Returns:
        (K,) float32, ``log sum exp(all) - log sum exp(positives)``.
    """
    # Differences of logarithms: with a temperature of 0.01, exp alone would overflow.
    logits_KM = logits_KM.float()
    hidden = logits_KM.masked_fill(~positive_KM, float("-inf"))
    return logits_KM.logsumexp(dim=1) - hidden.logsumexp(dim=1)


def image_text_contrastive(image_ND: Tensor, text_ND: Tensor, temperature: float = 0.01) -> Tensor:
    """Symmetric contrast of pictures and their captions.

    Args:
        image_ND: Features of whole pictures, any norm, of all processes.
        text_ND: Embeddings of their captions in the same order.
        temperature: Divisor of the cosine.

    Returns:
        Scalar, the mean of the cross-entropies of rows and of columns.

    Reference: CLIP, arXiv 2103.00020, section 2.3.
    """
    logits_NN = cosine_logits(image_ND, text_ND, temperature)
    diagonal = torch.arange(len(logits_NN), device=logits_NN.device)
    rows, columns = F.cross_entropy(logits_NN, diagonal), F.cross_entropy(logits_NN.T, diagonal)
    return (rows + columns) / 2
