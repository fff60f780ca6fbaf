"""Fusion of a detector's scores with those of a vision-language model.

Legend: R regions, K classes.
"""

import torch
from torch import Tensor


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

    Raises:
        ValueError: If shapes disagree.

    Reference: F-VLM, arXiv 2209.15639, Eq. 5, as used by F-ViT in CLIPSelf, arXiv 2310.01403.
    """
    if detector_RK.shape != clip_RK.shape:
        raise ValueError(
            f"detector scores are {tuple(detector_RK.shape)}, CLIP's {tuple(clip_RK.shape)}"
        )
    missing = detector_RK.shape[1] - len(base_mask)
    if missing not in (0, 1):
        raise ValueError(
            f"base mask has {len(base_mask)} entries for {detector_RK.shape[1]} scores"
        )
    is_base = torch.cat([base_mask.bool(), base_mask.new_ones(missing, dtype=torch.bool)])
    exponent = torch.where(is_base, alpha, beta).to(detector_RK)
    return detector_RK ** (1 - exponent) * clip_RK**exponent
