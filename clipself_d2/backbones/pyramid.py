"""F-ViT's feature pyramid over the blocks of a CLIP ViT.

Legend: N images, C tower width, H W pixels, h w cells of a level.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

from clipself_d2.backbones.clip_vit import CLIP_FEATURE, ClipViT
from clipself_d2.backbones.levels import (
    PyramidBackbone,
    check_strides,
    check_taps,
    doublings,
    plan_levels,
)


class ClipViTPyramid(PyramidBackbone):
    """Feature pyramid of power-of-two strides from one block of a ViT for each level.

    Every block's map is brought to its level's stride by ``make_adapter`` and, where the patch is
    no power of two, by ``resample``; lateral, top-down and output convolutions follow as in FPN.
    Features are ``p<log2 stride>``, one more level of twice the last stride, and the backbone's
    ``clip`` map untouched. Images of any size are taken; levels have ceil(H / stride) rows.

    Args:
        backbone: The ViT; its ``tap_blocks`` are read in order, the first for the finest level.
        strides: Pixels per cell of the levels, powers of two, ascending.
        out_channels: Channels of every level.
        norm: Norm of the adapters, lateral and output convolutions, by Detectron2's name.
        square_size: Side to which Detectron2 pads every image at the right and bottom, after
            normalisation, px; no image may be larger. 0 pads to the largest image of a batch.
        top_block: Levels above the last stride, as Detectron2's ``LastLevelP6P7``, which reads a
            level of this pyramid; None is one level of every second cell of the last.
        pad_to_stride: Whether sides are padded to a multiple of the last stride too, which
            semantic heads need that double maps until they meet.

    Raises:
        ValueError: If strides are no ascending powers of two, their number is not that of the taps,
            or a trained block is behind the last tap.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1. Differs for patches of 14 px: its
    strides 3.5, 7, 14, 28 are resampled to 4, 8, 16, 32, which Detectron2's pooler needs.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: ClipViT,
        strides: Sequence[int] = (4, 8, 16, 32),
        out_channels: int = 256,
        norm: str = "SyncBN",
        square_size: int = 0,
        top_block: nn.Module | None = None,
        pad_to_stride: bool = False,
    ) -> None:
        check_strides(strides)
        check_taps(backbone, backbone.tap_blocks, len(strides))
        super().__init__(
            backbone=backbone,
            strides=strides,
            square_size=square_size,
            top_block=top_block,
            pad_to_stride=pad_to_stride,
        )
        patch, width = backbone.tower.patch_size, backbone.tower.width
        self.adapters = nn.ModuleList(make_adapter(width, patch, s, norm) for s in strides)
        self.laterals, self.outputs = nn.ModuleList(), nn.ModuleList()
        for _ in strides:
            lateral = normed_conv(width, out_channels, 1, norm)
            output = normed_conv(out_channels, out_channels, 3, norm)
            # Both are filled after both are made: another order would draw other weights.
            c2_xavier_fill(lateral)
            c2_xavier_fill(output)
            self.laterals.append(lateral)
            self.outputs.append(output)
        self.set_levels(out_channels)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: ShapeSpec, one_stage: bool = False
    ) -> dict[str, Any]:
        """Read MODEL.CLIP_FPN, and MODEL.CLIP through ``ClipViT``.

        Without MODEL.CLIP.TAP_BLOCKS, blocks are at equal distances; levels of one-stage detectors
        are p3 to p7.
        """
        options = ClipViT.from_config(cfg, input_shape)
        count = len(cfg.MODEL.CLIP_FPN.STRIDES)
        taps = options["tap_blocks"] or spread_blocks(options["tower"].num_blocks, count)
        strides, top_block = plan_levels(cfg, one_stage=one_stage)
        # The blocks of levels that are left out go with them.
        options["tap_blocks"] = list(taps)[count - len(strides) :]
        return pyramid_options(cfg, ClipViT(**options), strides, top_block)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the levels, fine to coarse, and the dense map ``clip``.

        Images are as of ``ClipViT``; levels are (N, out_channels, ceil(H / stride), ceil(W /
        stride)).
        """
        features = self.bottom_up(images)
        laterals = []
        for level, block in enumerate(self.bottom_up.tap_blocks):
            adapted = self.adapters[level](features[f"block{block}"])
            laterals.append(self.laterals[level](self.align(adapted, level, images.shape[-2:])))
        for level in reversed(range(len(laterals) - 1)):
            coarse = F.interpolate(laterals[level + 1], laterals[level].shape[-2:], mode="nearest")
            # Detectron2's FPN doubles instead; sides that are rounded up are no exact doubles.
            laterals[level] = laterals[level] + coarse
        levels = [conv(merged) for conv, merged in zip(self.outputs, laterals, strict=True)]
        return self.add_top(levels, features[CLIP_FEATURE])


def pyramid_options(
    cfg: CfgNode, backbone: ClipViT, strides: Sequence[int], top_block: nn.Module | None
) -> dict[str, Any]:
    """Read the channels, norm and square of a pyramid into arguments of its constructor."""
    return {
        "backbone": backbone,
        "strides": strides,
        "out_channels": cfg.MODEL.FPN.OUT_CHANNELS,
        "norm": cfg.MODEL.FPN.NORM,
        "square_size": cfg.MODEL.CLIP_FPN.SQUARE_SIZE,
        "top_block": top_block,
    }


def spread_blocks(num_blocks: int, num_taps: int) -> list[int]:
    """Choose blocks at equal distances that end with the last one: 2, 5, 8, 11 for 4 of 12.

    Above ``num_blocks`` some come twice.
    """
    return [-(-(tap + 1) * num_blocks // num_taps) - 1 for tap in range(num_taps)]


def normed_conv(channels: int, out_channels: int, kernel: int, norm: str) -> Conv2d:
    """Make a convolution that keeps the grid, with a bias where it has no norm."""
    return Conv2d(
        channels,
        out_channels,
        kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
    )


def filled_conv(channels: int, out_channels: int, kernel: int, norm: str) -> Conv2d:
    """Make a convolution as ``normed_conv``, with Detectron2's weights of a pyramid."""
    conv = normed_conv(channels, out_channels, kernel, norm)
    c2_xavier_fill(conv)
    return conv


def make_adapter(
    channels: int, patch_size: int, stride: int, norm: str, *, narrowing: int = 1
) -> nn.Sequential | nn.MaxPool2d:
    """Make the module that brings a block's map nearest to a stride by factors of two.

    Upwards 2 x 2 transposed convolutions of stride 2, with norm and GELU between two of them;
    downwards one max-pooling. The result's stride is ``patch_size`` times or over a power of two.

    Args:
        channels: Channels C in, and out where nothing is narrowed.
        patch_size: Stride of the block's map, px.
        stride: Stride wanted, px.
        norm: Norm between transposed convolutions, by Detectron2's name.
        narrowing: Number by which each transposed convolution divides the channels.

    Returns:
        A module from (N, C, h, w) to (N, C, h * f, w * f) with f a power of two; sides are
        rounded up.
    """
    steps = doublings(patch_size, stride)
    if steps < 0:
        return nn.MaxPool2d(2**-steps, ceil_mode=True)
    layers: list[nn.Module] = []
    for step in range(steps):
        if step > 0:
            between = get_norm(norm, channels)
            layers += [nn.GELU()] if between is None else [between, nn.GELU()]
        wider, channels = channels, channels // narrowing
        layers.append(nn.ConvTranspose2d(wider, channels, kernel_size=2, stride=2))
    return nn.Sequential(*layers)
