"""Cross entropy with a weight for the background and a focal factor.

Legend: R regions, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Keeps the slope of a power below 1 finite where a region is certain.
_LEAST_DOUBT = 1e-12


def focal_scaled_loss(
    logits_RK1: Tensor,
    labels_R: Tensor,
    *,
    gamma: float = 0.0,
    background_weight: float = 1.0,
    normalize: bool = False,
) -> Tensor:
    """Average the cross entropy, scaled by how unsure of its label a region is.

    A region with probability p of its label counts ``w (1 - p)^gamma`` times, w being
    ``background_weight`` for background and 1 for objects; the factor is differentiated too.

    Args:
        logits_RK1: (R, K + 1), background last; R may be 0.
        labels_R: (R,) class numbers, K for background.
        gamma: Exponent of the focal factor, >= 0; 0 leaves it out.
        background_weight: Weight w of background regions, >= 0.
        normalize: Whether the sum is divided by the sum of w instead of by R.

    Returns:
        A scalar; 0 without regions.

    Reference: focal scaling of RegionCLIP, arXiv 2112.09106, section 3.3, which scales base classes
    and, as released, background too; the factor is of Lin et al., arXiv 1708.02002, Eq. 4.
    """
    if not len(labels_R):
        return logits_RK1.sum() * 0.0
    log_probability_RK1 = F.log_softmax(logits_RK1.float(), dim=1)
    log_label_R = log_probability_RK1.gather(1, labels_R[:, None])[:, 0]
    loss_R = -log_label_R
    if gamma:
        doubt_R = -torch.expm1(log_label_R)  # 1 - p, exact where p is near 1
        loss_R = loss_R * doubt_R.clamp(min=_LEAST_DOUBT) ** gamma
    is_background = labels_R == logits_RK1.shape[1] - 1
    weight_R = torch.where(is_background, background_weight, 1.0)
    total = weight_R.sum().clamp(min=_LEAST_DOUBT) if normalize else float(len(labels_R))
    return (weight_R * loss_R).sum() / total
