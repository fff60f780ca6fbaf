"""What the pyramids over a CLIP ViT share: names, strides and padding of their levels.

Legend: N images, C channels, D joint embedding, H W pixels, h w cells of a level.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn

from clipself_d2.backbones.clip_vit import CLIP_FEATURE, ClipViT
from clipself_d2.backbones.compatibility import has_semantic_head, is_dense_detector

# Levels that LastLevelP6P7 adds.
_CONV_LEVELS = 2


@dataclass(frozen=True)
class LevelPlan:
    """Levels that the detector of a config reads.

    Attributes:
        strides: Strides of the levels made from blocks, px, ascending.
        top_block: Module of the levels above; None is one level of every second cell.
        divisor: Number that padded sides are a multiple of, beside the patch, px.
    """

    strides: tuple[int, ...]
    top_block: nn.Module | None
    divisor: int


def plan_levels(cfg: CfgNode) -> LevelPlan:
    """Choose the levels of a pyramid for MODEL.META_ARCHITECTURE.

    A one-stage detector reads MODEL.RETINANET.IN_FEATURES: finer levels, whose parameters would
    never learn, are left out, and two levels above the last stride are convolutions, as in
    RetinaNet. A semantic head doubles maps until they meet, so that images are padded to a
    multiple of the last stride.

    Args:
        cfg: The whole config.

    Returns:
        The plan; for other detectors MODEL.CLIP_FPN.STRIDES as they are.
    """
    strides = tuple(cfg.MODEL.CLIP_FPN.STRIDES)
    divisor = strides[-1] if strides and has_semantic_head(cfg) else 1
    if not is_dense_detector(cfg):
        return LevelPlan(strides, None, divisor)
    wanted = [_stride(name) for name in cfg.MODEL.RETINANET.IN_FEATURES]
    strides = tuple(stride for stride in strides if stride >= min(wanted, default=0)) or strides
    top_block = None
    if max(wanted, default=0) == strides[-1] * 2**_CONV_LEVELS:
        channels = cfg.MODEL.FPN.OUT_CHANNELS
        top_block = LastLevelP6P7(channels, channels, level_name(strides[-1]))
    return LevelPlan(strides, top_block, divisor)


def level_name(stride: int) -> str:
    """Name a level.

    Args:
        stride: Pixels per cell, a power of two.

    Returns:
        p2 for 4 px, p3 for 8 px, and so on.
    """
    return f"p{stride.bit_length() - 1}"


def _stride(name: str) -> int:
    """Stride of p<n>; 0 for other names, which the check of the whole config reports."""
    number = name.removeprefix("p")
    return 1 << int(number) if number != name and number.isdecimal() else 0


class PyramidBackbone(Backbone):
    """A backbone of levels p<n> beside the dense map ``clip`` of its ViT.

    Args:
        backbone: The ViT.
        strides: Strides of the levels made from blocks, px.
        square_size: Side to which Detectron2 pads every image at the right and bottom, after
            normalisation, px; no image may be larger. 0 pads to the largest image of a batch.
        top_block: Module of the levels above, or None.
        divisor: Number that padded sides are a multiple of, beside the patch, px.

    Attributes:
        bottom_up: The ViT.

    Raises:
        ValueError: If ``square_size`` is negative.
    """

    def __init__(
        self,
        *,
        backbone: ClipViT,
        strides: Sequence[int],
        square_size: int,
        top_block: nn.Module | None = None,
        divisor: int,
    ) -> None:
        super().__init__()
        if square_size < 0:
            raise ValueError(
                f"MODEL.CLIP_FPN.SQUARE_SIZE is {square_size}; it is 0 or a side in px"
            )
        self.bottom_up = backbone
        self.strides = tuple(strides)
        self.square_size, self.divisor = square_size, divisor
        self.top_block = top_block

    @property
    def size_divisibility(self) -> int:
        """Number that padded sides are a multiple of, px: the patch, unless a head asks for more.

        The base class of Detectron2's own pyramid of ViTs reads this from ``padding_constraints``,
        under a misspelt name.
        """
        return math.lcm(self.bottom_up.size_divisibility, self.divisor)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Divisor and, where images are padded to a square, its side; both px."""
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_size}

    def set_levels(self, channels: int) -> None:
        """Declare the features after the attributes of the class are set.

        Args:
            channels: Channels of every level.

        Raises:
            ValueError: If the top block reads a level that is not there, or of other channels.
        """
        self._check_top(channels)
        # Detectron2's top blocks say these two of themselves.
        extra = 1 if self.top_block is None else int(str(self.top_block.num_levels))
        strides = [*self.strides, *(self.strides[-1] << step for step in range(1, extra + 1))]
        self._level_names = [level_name(stride) for stride in strides]
        named = dict(zip(self._level_names, strides, strict=True))
        self.declare(named, dict.fromkeys(named, channels))

    def _check_top(self, channels: int) -> None:
        names = [level_name(stride) for stride in self.strides]
        source = names[-1] if self.top_block is None else str(self.top_block.in_feature)
        if source not in names:
            raise ValueError(
                f"the backbone's top_block.in_feature is {source!r}, but its strides "
                f"{list(self.strides)} give {', '.join(names)}; name one of these"
            )
        conv = getattr(self.top_block, "p6", None)
        if isinstance(conv, nn.Conv2d) and conv.in_channels != channels:
            raise ValueError(
                f"the backbone's top_block.in_channels is {conv.in_channels}, but {source} has "
                f"{channels} channels (out_channels); give it as many"
            )

    def declare(self, strides: Mapping[str, int], channels: Mapping[str, int]) -> None:
        """Declare features and ``clip``.

        Args:
            strides: Stride by name, px.
            channels: Channels by name.
        """
        clip = self.bottom_up.output_shape()[CLIP_FEATURE]
        self._out_features = [*strides, CLIP_FEATURE]
        self._out_feature_strides = {**strides, CLIP_FEATURE: clip.stride}
        self._out_feature_channels = {
            **{name: channels[name] for name in strides},
            CLIP_FEATURE: clip.channels,
        }

    def add_top(self, levels: Sequence[Tensor], clip: Tensor) -> dict[str, Tensor]:
        """Add the levels above and name all.

        Args:
            levels: (N, C, h, w) for each stride.
            clip: (N, D, h, w) dense map.

        Returns:
            Features by name.
        """
        if self.top_block is None:
            above = [F.max_pool2d(levels[-1], kernel_size=1, stride=2)]
        else:
            above = self.top_block(levels[self._level_names.index(str(self.top_block.in_feature))])
        named = dict(zip(self._level_names, [*levels, *above], strict=True))
        return {**named, CLIP_FEATURE: clip}
