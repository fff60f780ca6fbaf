"""A CLIP ViT behind the names of a ResNet's stages, for C4, DC5 and DeepLab detectors.

Legend: N images, C tower width, H W pixels, h w cells of a stage.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from clipself_d2.backbones.clip_vit import CLIP_FEATURE, ClipViT
from clipself_d2.backbones.levels import PyramidBackbone, check_taps
from clipself_d2.backbones.pyramid import filled_conv, make_adapter, spread_blocks

STAGES = ("res2", "res3", "res4", "res5")


class ClipViTStages(PyramidBackbone):
    """Maps of a ViT with the names, strides and channels of a ResNet's stages.

    Each stage reads one block, is brought to its stride as the levels of ``ClipViTPyramid`` are,
    and to its channels by a 1 x 1 convolution with a norm. The feature ``clip`` is the ViT's,
    untouched.

    Args:
        backbone: The ViT; its ``tap_blocks`` are read in order, one for each stage.
        strides: Stride by name of the stage, px, powers of two.
        channels: Channels by name of the stage.
        norm: Norm of adapters and convolutions.
        square_size: Side to which Detectron2 pads every image, px; 0 pads no further than needed.
        pad_to_stride: Whether sides are padded to a multiple of the last stride too, which
            semantic heads need that double maps until they meet.

    Raises:
        ValueError: If the number of blocks is another, or a trained block is behind the last.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: ClipViT,
        strides: Mapping[str, int],
        channels: Mapping[str, int],
        norm: str = "SyncBN",
        square_size: int = 0,
        pad_to_stride: bool = False,
    ) -> None:
        check_taps(backbone, backbone.tap_blocks, len(strides))
        super().__init__(
            backbone=backbone,
            strides=tuple(strides.values()),
            square_size=square_size,
            pad_to_stride=pad_to_stride,
        )
        patch, width = backbone.tower.patch_size, backbone.tower.width
        self._names = tuple(strides)
        self.adapters = nn.ModuleList(make_adapter(width, patch, s, norm) for s in self.strides)
        self.laterals = nn.ModuleList(
            filled_conv(width, channels[name], 1, norm) for name in self._names
        )
        self.declare(strides, channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read MODEL.RESNETS, MODEL.CLIP_FPN, and MODEL.CLIP through ``ClipViT``.

        Stages, channels and dilations are those of MODEL.RESNETS, norm and square those of
        MODEL.CLIP_FPN; without MODEL.CLIP.TAP_BLOCKS, blocks are at equal distances.
        """
        resnets = cfg.MODEL.RESNETS
        names = list(resnets.OUT_FEATURES)
        strides = stage_strides(
            names,
            res4_dilation=resnets.get("RES4_DILATION", 1),
            res5_dilation=resnets.RES5_DILATION,
        )
        options = ClipViT.from_config(cfg, input_shape)
        options["tap_blocks"] = options["tap_blocks"] or spread_blocks(
            options["tower"].num_blocks, len(names)
        )
        return {
            "backbone": ClipViT(**options),
            "strides": strides,
            "channels": {name: resnets.RES2_OUT_CHANNELS << STAGES.index(name) for name in strides},
            "norm": cfg.MODEL.FPN.NORM,
            "square_size": cfg.MODEL.CLIP_FPN.SQUARE_SIZE,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the stages, of ceil(H / stride) rows, and ``clip``, as ``ClipViT`` does."""
        features = self.bottom_up(images)
        stages = {}
        for level, name in enumerate(self._names):
            adapted = self.adapters[level](features[f"block{self.bottom_up.tap_blocks[level]}"])
            aligned = self.align(adapted, level, images.shape[-2:])
            stages[name] = self.laterals[level](aligned)
        return {**stages, CLIP_FEATURE: features[CLIP_FEATURE]}


def stage_strides(
    names: Sequence[str], *, res4_dilation: int = 1, res5_dilation: int = 1
) -> dict[str, int]:
    """Strides of a ResNet's stages res2 to res5 by name, px.

    A dilation of 2 keeps the stride of the stage before. A ValueError says that a name is unknown
    or there is none.
    """
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES is {list(names)}; it names some of {', '.join(STAGES)}"
        )
    kept = {"res4": res4_dilation > 1, "res5": res5_dilation > 1}
    # From 2, so that res2, the first of the loop, has the 4 px of the stem and its pooling.
    strides, stride = {}, 2
    for name in STAGES:
        stride *= 1 if kept.get(name) else 2
        strides[name] = stride
    return {name: strides[name] for name in sorted(names, key=STAGES.index)}
