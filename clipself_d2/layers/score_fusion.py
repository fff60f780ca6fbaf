"""Fusion of a detector's scores with those of a vision-language model.

Legend: R regions, K classes.
"""

import torch
from torch import Tensor

# Added before the logarithm, as published.
_LEAST_PROBABILITY = 1e-8
# Relative error that powers in float32 stay far below.
_MARGIN = 1e-4


def fuse_scores(
    detector_RK: Tensor, clip_RK: Tensor, base_mask: Tensor, alpha: float, beta: float
) -> Tensor:
    """Weighted geometric mean of two sets of probabilities, other weights for novel classes.

    Args:
        detector_RK: (R, K) or (R, K + 1) probabilities of the detector, background last.
        clip_RK: As ``detector_RK``, of the vision-language model.
        base_mask: (K,) True for base classes; a background column counts as base.
        alpha: Exponent of ``clip_RK`` for base classes, in [0, 1]; 0 is the detector alone.
        beta: Exponent of ``clip_RK`` for novel classes, in [0, 1]; 1 is CLIP alone.

    Returns:
        Scores of the shape of ``detector_RK``, in [0, 1]; rows do not sum to 1.

    Reference: F-VLM, arXiv 2209.15639, Eq. 5, as used by F-ViT in CLIPSelf, arXiv 2310.01403.
    """
    columns = detector_RK.shape[1]
    missing = columns - len(base_mask)
    if missing not in (0, 1):
        raise ValueError(f"base mask has {len(base_mask)} entries for {columns} scores")
    is_base = torch.cat([base_mask.bool(), base_mask.new_ones(missing, dtype=torch.bool)])
    return _fuse(detector_RK, clip_RK, torch.where(is_base, alpha, beta).to(detector_RK))


def fuse_passing(
    detector_RK1: Tensor,
    clip_RK1: Tensor,
    base_mask: Tensor,
    alpha: float,
    beta: float,
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the classes whose ``fuse_scores`` are above a threshold, without fusing all of them.

    Powers are dear, and a fused score is at most either factor: what one of them keeps below the
    threshold is not fused.

    Args:
        detector_RK1: (R, K + 1) probabilities of the detector, background last.
        clip_RK1: As ``detector_RK1``, of the vision-language model.
        base_mask: (K,) True for base classes.
        alpha: As ``fuse_scores``.
        beta: As ``fuse_scores``.
        threshold: What scores must exceed.

    Returns:
        Numbers of regions and of classes, background left out, and scores, (P,) each, by region and
        class; a region with a probability that is NaN has none. Scores are those of ``fuse_scores``
        but for the last bit.
    """
    exponent_K = torch.where(base_mask.bool(), alpha, beta).to(detector_RK1)
    # F-VLM, Eq. 5: detector^(1 - exponent) * CLIP^exponent, and neither factor is above 1.
    least_detector = _least_factor(threshold, 1 - exponent_K)
    passing = (detector_RK1[:, :-1] > least_detector).logical_and_(
        clip_RK1[:, :-1] > _least_factor(threshold, exponent_K)
    )
    rows, classes = passing.nonzero(as_tuple=True)
    scores = _fuse(detector_RK1[rows, classes], clip_RK1[rows, classes], exponent_K[classes])
    kept = (scores > threshold).nonzero()[:, 0]
    return rows[kept], classes[kept], scores[kept]


def _fuse(detector: Tensor, clip: Tensor, exponent: Tensor) -> Tensor:
    return detector ** (1 - exponent) * clip**exponent


def _least_factor(threshold: float, exponent_K: Tensor) -> Tensor:
    """What a probability must exceed for its power to exceed a threshold, a little less."""
    safe = max(threshold, 0.0) * (1 - _MARGIN)
    least = safe ** (1 / exponent_K.double())
    # Numbers below the smallest normal one are rounded coarsely.
    least = torch.where(least < torch.finfo(exponent_K.dtype).tiny, 0.0, least)
    return torch.where((exponent_K == 0) | (threshold < 0), -1.0, least).to(exponent_K)


def ensemble_log_probs(
    detector_QK1: Tensor,
    clip_QK: Tensor,
    base_mask: Tensor,
    *,
    alpha: float,
    beta: float,
    seen_Q: Tensor | None = None,
    recognition: float = 0.0,
) -> Tensor:
    """Geometric mean of two class distributions of masks, other weights for novel classes.

    Args:
        detector_QK1: (..., K + 1) logits of the detector, void last.
        clip_QK: (..., K) logits of the vision-language model.
        base_mask: (K,) True for classes that have a word in common with the training.
        alpha: Exponent of CLIP's probability for base classes, in [0, 1].
        beta: The same for novel classes.
        seen_Q: (...,) False for masks that CLIP saw nothing of, which keep the detector's scores;
            None: it saw all.
        recognition: Exponent, in [0, 1], of CLIP's largest probability in the objectness, one
            minus void's probability: masks that CLIP recognises are less void. 0 leaves it out.

    Returns:
        (..., K + 1) log of probabilities that sum to 1, void's as the detector has it but for
        ``recognition``; at least log(1e-8).

    Reference: ODISE, arXiv 2303.04803, Eq. 6, with the normalisation of FC-CLIP, arXiv 2308.02487.
    Differs: sums of log-softmax, so that a probability that underflows is no NaN. The idea of the
    correction is OVRCOAT's, arXiv 2603.21386; its form here is ours.
    """
    void_Q1 = detector_QK1.float().softmax(-1)[..., -1:]
    if recognition:
        best_Q1 = clip_QK.float().softmax(-1).amax(-1, keepdim=True)
        share = recognition if seen_Q is None else recognition * seen_Q[..., None]
        # Geometric mean of objectness and of CLIP's largest probability.
        void_Q1 = 1 - (1 - void_Q1) ** (1 - share) * best_Q1**share
    exponent = torch.where(base_mask.bool(), alpha, beta).to(detector_QK1.device, torch.float32)
    if seen_Q is not None:
        exponent = exponent * seen_Q[..., None]
    inside = detector_QK1[..., :-1].float().log_softmax(-1)
    outside = clip_QK.float().log_softmax(-1)
    # Exponents are the weights of logarithms; the softmax makes classes sum to 1 again.
    classes = ((1 - exponent) * inside + exponent * outside).softmax(-1)
    return (torch.cat([classes * (1 - void_Q1), void_Q1], dim=-1) + _LEAST_PROBABILITY).log()
