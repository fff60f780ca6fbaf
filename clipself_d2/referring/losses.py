"""CRIS's loss.

Legend: N pairs of image and sentence, H W pixels, h w cells of the prediction.
"""

import torch.nn.functional as F
from torch import Tensor


def text_to_pixel_contrastive_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Pull the pixels of the object to the sentence, push the others away.

    Args:
        logits: (N, 1, h, w), the product z_t . z_v of every pixel, no temperature.
        masks: (N, 1, H, W) in [0, 1], of any size; read at the nearest pixel of each cell.

    Returns:
        Scalar: the mean over all pixels of -log sigma(z_t . z_v) inside the mask and
        -log(1 - sigma(z_t . z_v)) outside; where the mask is a fraction, both in its proportion.

    Reference: Wang et al., CRIS, arXiv 2111.15174, section 3.4, Eq. 10 and 11: the mean over the
    set of positive and negative pixels. This is per-pixel binary cross entropy; what makes it
    contrastive is that the logit is the product of pixel and sentence.
    """
    target = F.interpolate(masks.float(), logits.shape[-2:], mode="nearest")
    return F.binary_cross_entropy_with_logits(logits.float(), target)
