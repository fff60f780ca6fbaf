"""CRIS's projector: the sentence as a convolution kernel over the pixels.

Legend: N pairs of image and sentence, C channels, D sentence embedding, h w grid.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.referring.norms import MakeNorm, SharedBatchNorm, conv_norm_relu

_UPSAMPLING = 2.0


class CrisProjector(nn.Module):
    """Projects pixels and sentence into one space and multiplies them there.

    With ``kernel_size`` 1 the logit is z_t . z_v plus a bias, the paper's formula. With 3, as in
    the released code, z_t is a 3 x 3 kernel over the neighbourhood of z_v.

    Args:
        dim: Channels of the decoder's map.
        state_dim: Width D of the sentence embedding.
        kernel_size: Odd side of the sentence's kernel, cells of the upsampled map; 0 leaves the
            sentence out: a plain classifier of every pixel, the paper's ablation.
        make_norm: From a number of channels to a norm.
        normalize_state: Whether sentence embeddings are brought to unit norm first, so that a step
            of Adam moves z_t alike for towers of any scale; False as released.
        prior: Probability, in (0, 1), that the bias gives a pixel at the start, as RetinaNet's
            (arXiv 1708.02002, section 3.3); None leaves the bias to torch, as released.

    Raises:
        ValueError: If the kernel has an even side or the map an odd number of channels.

    Reference: Wang et al., CRIS, arXiv 2111.15174, section 3.4, Eq. 8 and 9. As in the released
    code, z_v has a convolution behind each of its two upsamplings, and is dim / 2 wide.
    """

    def __init__(
        self,
        *,
        dim: int = 512,
        state_dim: int,
        kernel_size: int = 3,
        make_norm: MakeNorm = SharedBatchNorm,
        normalize_state: bool = False,
        prior: float | None = None,
    ) -> None:
        super().__init__()
        self.normalize_state = normalize_state
        if dim % 2 or kernel_size < 0 or (kernel_size and kernel_size % 2 == 0):
            raise ValueError(
                f"a kernel of side {kernel_size} over a map of {dim} channels; "
                "MODEL.CRIS.KERNEL_SIZE is odd or 0 and the middle of MODEL.CRIS.FPN_OUT even"
            )
        self.kernel_size = kernel_size
        pixel_dim = dim // 2
        self.vis = nn.Sequential(
            nn.Upsample(scale_factor=_UPSAMPLING, mode="bilinear"),
            conv_norm_relu(dim, dim, 3, make_norm),
            nn.Upsample(scale_factor=_UPSAMPLING, mode="bilinear"),
            conv_norm_relu(dim, pixel_dim, 3, make_norm),
            nn.Conv2d(pixel_dim, pixel_dim, kernel_size=1),
        )
        if kernel_size:
            self.txt = nn.Linear(state_dim, pixel_dim * kernel_size**2 + 1)
        else:
            self.classifier = nn.Conv2d(pixel_dim, 1, kernel_size=1)
        head = self.txt if kernel_size else self.classifier
        if prior is not None and head.bias is not None:
            nn.init.constant_(head.bias[-1:], math.log(prior / (1 - prior)))

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """Score every pixel of (N, C, h, w) by (N, D): (N, 1, 4h, 4w) logits, not scaled."""
        pixels = self.vis(features)
        if not self.kernel_size:
            plain: Tensor = self.classifier(pixels)
            return plain
        if self.normalize_state:
            state = F.normalize(state, dim=1)
        return sentence_convolution(pixels, self.txt(state), self.kernel_size)


def sentence_convolution(pixels: Tensor, kernels: Tensor, kernel_size: int) -> Tensor:
    """Convolve each map (N, C, h, w) with the kernel of its own sentence, zeros beyond the border.

    Kernels are (N, C * k * k + 1), the last value the bias.
    """
    count, channels = pixels.shape[:2]
    weight = kernels[:, :-1].reshape(count, channels, kernel_size, kernel_size)
    if kernel_size == 1:
        product = torch.einsum("nchw,nc->nhw", pixels, weight[:, :, 0, 0])
        return (product + kernels[:, -1, None, None])[:, None]
    # One grouped convolution over (1, N * C, h, w): a group for each pair, as the released code.
    pairs, bias = pixels.flatten(0, 1)[None], kernels[:, -1]
    joined = F.conv2d(pairs, weight, bias, padding=kernel_size // 2, groups=count)
    return joined.transpose(0, 1)
