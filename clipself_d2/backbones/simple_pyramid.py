"""ViTDet's simple feature pyramid over the last map of a CLIP ViT.

Legend: N images, C tower width, H W pixels, h w cells of a level.
"""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from clipself_d2.backbones.clip_vit import CLIP_FEATURE, ClipViT
from clipself_d2.backbones.levels import (
    PyramidBackbone,
    check_strides,
    check_taps,
    doublings,
    plan_levels,
)
from clipself_d2.backbones.pyramid import filled_conv, make_adapter, pyramid_options


class ClipViTSimplePyramid(PyramidBackbone):
    """Levels of power-of-two strides, each made from the ViT's last map by itself.

    Transposed convolutions of stride 2 with half the channels each go up, max-pooling goes down; a
    1 x 1 and a 3 x 3 convolution with norms follow. There is no path between levels. Features
    are ``p<log2 stride>``, the levels above, and the ViT's ``clip`` map untouched. Images of any
    size are taken; levels have ceil(H / stride) rows.

    Args:
        backbone: The ViT; the last of its ``tap_blocks`` is read.
        strides: Pixels per cell of the levels, powers of two, ascending.
        out_channels: Channels of every level.
        norm: Norm of all convolutions; ViTDet has LN.
        square_size: Side to which Detectron2 pads every image, px; 0 pads no further than needed.
        top_block: Levels above the last stride, as Detectron2's ``LastLevelP6P7``; None is one
            level of every second cell of the last.
        pad_to_stride: Whether sides are padded to a multiple of the last stride too, which
            semantic heads need that double maps until they meet.

    Raises:
        ValueError: If strides are no ascending powers of two, or the backbone taps no block or not
            the last of a trained tower.

    Reference: ViTDet, arXiv 2203.16527, section 3, as Detectron2's ``SimpleFeaturePyramid``.
    Differs: strides of 14 px patches are resampled to powers of two, which Detectron2's pooler
    needs; sides are rounded up; images are padded to whole patches, which Detectron2 leaves out
    since it declares the divisor under a misspelt name.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: ClipViT,
        strides: Sequence[int] = (4, 8, 16, 32),
        out_channels: int = 256,
        norm: str = "LN",
        square_size: int = 0,
        top_block: nn.Module | None = None,
        pad_to_stride: bool = False,
    ) -> None:
        check_strides(strides)
        read = backbone.tap_blocks[-1:]
        check_taps(backbone, read, 1)
        super().__init__(
            backbone=backbone,
            strides=strides,
            square_size=square_size,
            top_block=top_block,
            pad_to_stride=pad_to_stride,
        )
        patch, width = backbone.tower.patch_size, backbone.tower.width
        self._tap_name = f"block{read[0]}"
        self.scalers, self.outputs = nn.ModuleList(), nn.ModuleList()
        for stride in strides:
            scaler, channels = make_scaler(width, patch, stride, norm)
            self.scalers.append(scaler)
            self.outputs.append(_make_output(channels, out_channels, norm))
        self.set_levels(out_channels)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: ShapeSpec, one_stage: bool = False
    ) -> dict[str, Any]:
        """Read as ``ClipViTPyramid`` does; without MODEL.CLIP.TAP_BLOCKS, the last block."""
        options = ClipViT.from_config(cfg, input_shape)
        options["tap_blocks"] = options["tap_blocks"] or [options["tower"].num_blocks - 1]
        backbone = ClipViT(**options)
        return pyramid_options(cfg, backbone, *plan_levels(cfg, one_stage=one_stage))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the levels and ``clip``, as ``ClipViTPyramid``."""
        features = self.bottom_up(images)
        levels = []
        for level, (scaler, output) in enumerate(zip(self.scalers, self.outputs, strict=True)):
            scaled = scaler(features[self._tap_name])
            levels.append(output(self.align(scaled, level, images.shape[-2:])))
        return self.add_top(levels, features[CLIP_FEATURE])


def make_scaler(
    channels: int, patch_size: int, stride: int, norm: str
) -> tuple[nn.Sequential | nn.MaxPool2d, int]:
    """Make the module that brings the map nearest to a stride, px, by factors of two.

    Beside it its channels out: half of those in for each step up.
    """
    scaler = make_adapter(channels, patch_size, stride, norm, narrowing=2)
    return scaler, channels >> max(0, doublings(patch_size, stride))


def _make_output(channels: int, out_channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        filled_conv(channels, out_channels, 1, norm),
        filled_conv(out_channels, out_channels, 3, norm),
    )
