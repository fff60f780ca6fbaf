"""A CLIP image tower as a Detectron2 backbone.

Legend: N images, D joint embedding, C tower width, H W pixels, h w patch grid.
"""

import logging
from collections.abc import Sequence
from typing import TypedDict

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from clipself_d2.backbones.compatibility import refuse_bgr
from clipself_d2.backbones.features import Features
from clipself_d2.clip.model import load_tower
from clipself_d2.clip.towers.contract import LAST_BLOCKS, VisionTower
from clipself_d2.clip.towers.depth import depth_of_parameters
from clipself_d2.clip.towers.drop_path import set_drop_path

logger = logging.getLogger(__name__)

CLIP_FEATURE = "clip"
# Value of MODEL.CLIP.TRAINABLE_BLOCKS that trains the patch embedding too.
ALL_BLOCKS = -1
# ImageNet's mean and std, with which F-ViT was published, are within 15 % of CLIP's.
_PIXEL_TOLERANCE = 0.25


class ClipViTOptions(TypedDict):
    """Keyword arguments of ``ClipViT``."""

    tower: VisionTower
    tap_blocks: Sequence[int]
    last_block: str
    trainable_blocks: int
    drop_path: float


class ClipViT(Backbone):
    """A CLIP ViT that returns its dense embedding and the outputs of some blocks.

    Features are ``clip``, the (N, D, h, w) dense map with unit norm in every cell, and
    ``block<i>``, the (N, C, h, w) output of block i before the final norm; all float32, with the
    patch size as stride. A ConvNeXt counts as a ViT of the blocks of its last stage. With
    ``trainable_blocks`` 0 the tower is frozen: it stays in eval mode and features carry no
    gradient.

    Args:
        tower: Image tower. What of it is trained is set here.
        tap_blocks: 0-based numbers of the blocks to return; one may occur more than once.
        last_block: "value", identity attention in the last block, or "attention".
        trainable_blocks: Number of last blocks to train; -1 trains all of them, the patch
            embedding and the positions. Final norm and projection stay, for the text behind them.
        drop_path: Probability of stochastic depth in the last block, growing from 0 in the first;
            it is applied to blocks that are trained.

    Raises:
        ValueError: If ``last_block`` is unknown, the tower has fewer blocks, or ``drop_path`` is
            no probability below 1.

    Reference: the backbone of F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(
        self,
        *,
        tower: VisionTower,
        tap_blocks: Sequence[int] = (),
        last_block: str = "value",
        trainable_blocks: int = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if last_block not in LAST_BLOCKS:
            raise ValueError(
                f"last_block is {last_block!r}; MODEL.CLIP.LAST_BLOCK is one of {LAST_BLOCKS}"
            )
        unknown = [number for number in tap_blocks if not 0 <= number < tower.num_blocks]
        if unknown:
            raise ValueError(
                f"{tower.name} has blocks 0 to {tower.num_blocks - 1}, not {unknown}; change "
                "MODEL.CLIP.TAP_BLOCKS"
            )
        _unlock(tower, trainable_blocks)
        trained = tower.num_blocks if trainable_blocks == ALL_BLOCKS else trainable_blocks
        set_drop_path(tower, drop_path, trained)
        self.tower = tower
        self.tap_blocks = tuple(tap_blocks)
        self.last_block = last_block
        self.trainable_blocks = trainable_blocks
        channels = {f"block{number}": tower.width for number in self.tap_blocks}
        channels[CLIP_FEATURE] = tower.embed_dim
        self._out_features = list(channels)
        self._out_feature_channels = channels
        self._out_feature_strides = dict.fromkeys(channels, tower.patch_size)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> ClipViTOptions:
        """Read MODEL.CLIP.

        Args:
            cfg: The whole config.
            input_shape: Shape of the images; three channels.

        Returns:
            Arguments of the constructor. The tower's weights are those of MODEL.CLIP.WEIGHTS, else
            of MODEL.CLIP.PRETRAINED, else random; its dense path has the windows of
            MODEL.CLIP.WINDOW_SIZE and MODEL.CLIP.GLOBAL_BLOCKS.

        Raises:
            ValueError: If images have not three channels or are BGR, or the tower cannot have such
                windows.
        """
        if input_shape.channels != 3:
            raise ValueError(
                f"images have {input_shape.channels} channels but CLIP takes RGB; "
                "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD need three values"
            )
        clip = cfg.MODEL.CLIP
        weights = clip.WEIGHTS or clip.PRETRAINED or None
        tower = load_tower(clip.NAME, weights, precision=clip.PRECISION)
        tower.set_attention(window_size=clip.WINDOW_SIZE, global_blocks=clip.GLOBAL_BLOCKS)
        tower.checkpointing = clip.ACTIVATION_CHECKPOINTING
        refuse_bgr(cfg, name=tower.name, pixel_mean=tower.pixel_mean)
        _warn_of_pixels(cfg, tower)
        return {
            "tower": tower,
            "tap_blocks": clip.TAP_BLOCKS,
            "last_block": clip.LAST_BLOCK,
            "trainable_blocks": clip.TRAINABLE_BLOCKS,
            "drop_path": clip.DROP_PATH,
        }

    @property
    def size_divisibility(self) -> int:
        """Side of a patch, px; Detectron2 pads images to a multiple."""
        return self.tower.patch_size

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The same for the parts of Detectron2 that ask here."""
        return {"size_divisibility": self.size_divisibility}

    def output_shape(self) -> Features:
        """Return channels and strides by name of the feature."""
        return Features(super().output_shape())

    def train(self, mode: bool = True) -> "ClipViT":
        """Set the mode; a frozen tower stays in eval mode.

        Args:
            mode: True for training.

        Returns:
            The module itself.
        """
        super().train(mode)
        self.tower.train(mode and self.trainable_blocks != 0)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            images: (N, 3, H, W) pixels normalised with CLIP's mean and std, RGB. Sides that are
                no multiple of the patch are padded with zeros.

        Returns:
            Features by name; h is ceil(H / patch), w likewise.
        """
        learns = self.trainable_blocks != 0 and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            dense = self.tower.forward_dense(images, self.tap_blocks, self.last_block)
        taps = zip(self.tap_blocks, dense.blocks, strict=True)
        features = {f"block{number}": output for number, output in taps}
        features[CLIP_FEATURE] = dense.embedding
        return features


def _unlock(tower: VisionTower, trainable_blocks: int) -> None:
    if trainable_blocks != ALL_BLOCKS:
        tower.unlock(trainable_blocks)
        return
    tower.unlock(tower.num_blocks, everything=True)
    parameters = dict(tower.named_parameters())
    for name, depth in depth_of_parameters(tower).items():
        if depth > tower.num_blocks:
            parameters[name].requires_grad_(False)


def _warn_of_pixels(cfg: CfgNode, tower: VisionTower) -> None:
    pairs = [
        *zip(cfg.MODEL.PIXEL_MEAN, tower.pixel_mean, strict=True),
        *zip(cfg.MODEL.PIXEL_STD, tower.pixel_std, strict=True),
    ]
    if not all(abs(got - native) <= _PIXEL_TOLERANCE * native for got, native in pairs):
        logger.warning(
            "images come with mean %s and std %s, but %s was trained with mean %s and std %s; its "
            "features will be poor unless MODEL.PIXEL_MEAN and MODEL.PIXEL_STD say so",
            list(cfg.MODEL.PIXEL_MEAN),
            list(cfg.MODEL.PIXEL_STD),
            tower.name,
            [round(value, 3) for value in tower.pixel_mean],
            [round(value, 3) for value in tower.pixel_std],
        )
