"""What the pyramids over a CLIP ViT share: names, strides and padding of their levels.

Legend: N images, C channels, D joint embedding, H W pixels, h w cells of a level.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn

from clipself_d2.backbones.clip_vit import CLIP_FEATURE, ClipViT, Features

# Stride of the finest level that one-stage detectors read, px.
_FIRST_DENSE_STRIDE = 8


def plan_levels(cfg: CfgNode, *, one_stage: bool) -> tuple[tuple[int, ...], nn.Module | None]:
    """Read the strides of a pyramid's levels made from blocks, px, and the module of those above.

    One-stage detectors, as of RetinaNet, go from p3 on, with two levels of convolutions above the
    last stride; None is one level of every second cell.
    """
    strides = tuple(cfg.MODEL.CLIP_FPN.STRIDES)
    if not one_stage:
        return strides, None
    strides = tuple(stride for stride in strides if stride >= _FIRST_DENSE_STRIDE)
    check_strides(strides)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return strides, LastLevelP6P7(channels, channels, level_name(strides[-1]))


def level_name(stride: int) -> str:
    """Name a level by its stride, a power of two: p2 for 4 px, p3 for 8 px, and so on."""
    return f"p{stride.bit_length() - 1}"


def check_strides(strides: Sequence[int]) -> None:
    """Raise a ValueError for strides that are no powers of two or do not ascend."""
    ascending = all(fine < coarse for fine, coarse in pairwise(strides))
    if not strides or not ascending or any(s < 1 or s.bit_count() != 1 for s in strides):
        raise ValueError(
            f"strides are {list(strides)}; MODEL.CLIP_FPN.STRIDES are powers of two, ascending"
        )


def check_taps(backbone: ClipViT, read: Sequence[int], num_levels: int) -> None:
    """Raise a ValueError for more or fewer blocks than levels, or a trained one behind the last."""
    if len(read) != num_levels:
        raise ValueError(
            f"{len(read)} blocks {list(read)} for {num_levels} levels; MODEL.CLIP.TAP_BLOCKS needs "
            "the length of MODEL.CLIP_FPN.STRIDES, or of MODEL.RESNETS.OUT_FEATURES for stages"
        )
    last = backbone.tower.num_blocks - 1
    if backbone.trainable_blocks and last not in read:
        raise ValueError(
            f"the last blocks are trained (TRAINABLE_BLOCKS {backbone.trainable_blocks}) but no "
            f"level reads block {last}; end MODEL.CLIP.TAP_BLOCKS with it or set "
            "MODEL.CLIP.TRAINABLE_BLOCKS to 0"
        )


class PyramidBackbone(Backbone):
    """A backbone of levels p<n> beside the dense map ``clip`` of its ViT.

    Args:
        backbone: The ViT.
        strides: Strides of the levels made from blocks, px.
        square_size: Side to which Detectron2 pads every image at the right and bottom, after
            normalisation, px; no image may be larger. 0 pads to the largest image of a batch.
        top_block: Module of the levels above, or None.
        pad_to_stride: Whether sides are padded to a multiple of the last stride, beside the patch.

    Attributes:
        bottom_up: The ViT.
    """

    def __init__(
        self,
        *,
        backbone: ClipViT,
        strides: Sequence[int],
        square_size: int,
        top_block: nn.Module | None = None,
        pad_to_stride: bool = False,
    ) -> None:
        super().__init__()
        self.bottom_up = backbone
        self.strides = tuple(strides)
        self.square_size, self.pad_to_stride = square_size, pad_to_stride
        self.top_block = top_block

    @property
    def size_divisibility(self) -> int:
        """Number that padded sides are a multiple of, px: the patch, and the last stride if asked.

        The base class of Detectron2's own pyramid of ViTs reads this from ``padding_constraints``,
        under a misspelt name.
        """
        patch = self.bottom_up.size_divisibility
        return math.lcm(patch, max(self.strides)) if self.pad_to_stride else patch

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Divisor and, where images are padded to a square, its side; both px."""
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_size}

    def set_levels(self, channels: int) -> None:
        """Declare the levels, of so many channels, after the attributes of the class are set.

        A ValueError says that the top block reads a level that is not there.
        """
        # Detectron2's top blocks say these two of themselves.
        extra = 1 if self.top_block is None else int(str(self.top_block.num_levels))
        source = None if self.top_block is None else str(self.top_block.in_feature)
        # Each level above doubles the stride.
        strides = [*self.strides, *(self.strides[-1] << step for step in range(1, extra + 1))]
        self._level_names = [level_name(stride) for stride in strides]
        made = self._level_names[: len(self.strides)]
        if source is not None and source not in made:
            raise ValueError(
                f"the backbone's top_block.in_feature is {source!r}, but its strides "
                f"{list(self.strides)} give {', '.join(made)}; name one of these"
            )
        named = dict(zip(self._level_names, strides, strict=True))
        self.declare(named, dict.fromkeys(named, channels))

    def output_shape(self) -> Features:
        """Return channels and strides by name of the feature."""
        return Features(super().output_shape())

    def declare(self, strides: Mapping[str, int], channels: Mapping[str, int]) -> None:
        """Declare features and ``clip`` by strides, px, and channels."""
        clip = self.bottom_up.output_shape()[CLIP_FEATURE]
        self._out_features = [*strides, CLIP_FEATURE]
        self._out_feature_strides = {**strides, CLIP_FEATURE: clip.stride}
        self._out_feature_channels = {
            **{name: channels[name] for name in strides},
            CLIP_FEATURE: clip.channels,
        }

    def align(self, map_NChw: Tensor, level: int, size: Sequence[int]) -> Tensor:
        """Bring an adapted map to the stride of its level.

        ``level`` counts from the finest, and ``size`` is (H, W) of the padded images; the result
        has ceil(H / stride) rows.
        """
        stride, (height, width) = self.strides[level], size
        # Not minus a floor of a negative, which ONNX would round towards zero.
        grid = ((height + stride - 1) // stride, (width + stride - 1) // stride)
        patch = self.bottom_up.tower.patch_size
        return resample(map_NChw, patch / 2.0 ** doublings(patch, stride), stride, grid)

    def add_top(self, levels: Sequence[Tensor], clip: Tensor) -> dict[str, Tensor]:
        """Add the levels above (N, C, h, w) for each stride, and the dense map, by name."""
        if self.top_block is None:
            # Every second cell, as Detectron2's LastLevelMaxPool.
            above = [F.max_pool2d(levels[-1], kernel_size=1, stride=2)]
        else:
            above = self.top_block(levels[self._level_names.index(str(self.top_block.in_feature))])
        named = dict(zip(self._level_names, [*levels, *above], strict=True))
        return {**named, CLIP_FEATURE: clip}


def resample(map_NChw: Tensor, source: float, target: float, grid: tuple[int, int]) -> Tensor:
    """Interpolate a map to another stride with the upper left corner of the image kept in place.

    Cell j of a map of stride s covers pixels s * j to s * (j + 1), before and after. Resizing to
    ``grid`` would stretch a map whose cells do not end where the image does. Past the border the
    last cells are repeated; where the strides agree it is a crop of the map.
    """
    if source != target:
        scale = source / target
        # Enough cells that rounding down after scaling leaves the grid.
        height, width = (math.ceil(cells / scale) for cells in grid)
        missing = (0, max(0, width - map_NChw.shape[-1]), 0, max(0, height - map_NChw.shape[-2]))
        padded = F.pad(map_NChw, missing, mode="replicate")
        map_NChw = F.interpolate(padded, scale_factor=scale, mode="bilinear", align_corners=False)
    return map_NChw[..., : grid[0], : grid[1]]


def doublings(patch_size: int, stride: int) -> int:
    """Count the factors of two from the patch to a stride; negative where that is coarser."""
    return round(math.log2(patch_size / stride))
