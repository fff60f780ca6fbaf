"""A CLIP image tower as a Detectron2 backbone.

Legend: N images, D joint embedding, C tower width, H W pixels, h w patch grid.
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from clipself_d2.clip import VisionTower
from clipself_d2.clip.towers.dense_form import DenseForm
from clipself_d2.clip.towers.drop_path import set_drop_path
from clipself_d2.parts.dense_form import set_form
from clipself_d2.parts.image_tower import build_image_tower


class Features(dict[str, ShapeSpec]):
    """A backbone's ``output_shape()``; Detectron2's heads look names up in it."""

    def __missing__(self, name: str) -> ShapeSpec:
        """Raise in place of a bare KeyError."""
        raise ValueError(
            f"a head asks for the feature {name!r}, but the backbone gives {', '.join(self)}; name "
            "some of those in the head's IN_FEATURES (lazy: in_features), or take another "
            "MODEL.BACKBONE.NAME: build_retinanet_clip_vit_fpn_backbone gives p3 to p7, "
            "build_clip_vit_stages_backbone res2 to res5"
        )


CLIP_FEATURE = "clip"


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
        dense_form: Form of the dense map, or its name in ``clip.towers.dense_form``.
        any_form: Whether weights that were trained in another form may be run in this one.
        trainable_blocks: Number of last blocks to train; -1 trains all of them, the patch
            embedding and the positions. Final norm and projection stay, for the text behind them.
        trainable_parts: What of those blocks learns: "all", "attention" or "query_value".
        drop_path: Probability of stochastic depth in the last block, growing from 0 in the first;
            it is applied to blocks that are trained.

    Raises:
        ValueError: If the tower is a ResNet or cannot have ``dense_form``, there are fewer blocks,
            or ``drop_path`` is no probability below 1.

    Reference: the backbone of F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(
        self,
        *,
        tower: VisionTower,
        tap_blocks: Sequence[int] = (),
        dense_form: DenseForm | str = "clipself",
        any_form: bool = False,
        trainable_blocks: int = 0,
        trainable_parts: str = "all",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if len(set(tower.block_strides)) != 1:
            raise ValueError(
                f"{tower.name} is a ResNet, whose stages have strides of their own; set "
                "MODEL.BACKBONE.NAME to build_clip_resnet_fpn_backbone or "
                "build_clip_resnet_backbone (LazyConfig: ClipResNet)"
            )
        tower.check_dense(tap_blocks, dense_form)
        set_form(tower, dense_form, any_form=any_form)
        # The detector's losses read blocks; the dense embedding is for its tests.
        tower.freeze(trainable_blocks, behind=False, parts=trainable_parts)
        trained = tower.num_blocks if trainable_blocks < 0 else trainable_blocks
        set_drop_path(tower, drop_path, trained)
        self.tower = tower
        self.tap_blocks = tuple(tap_blocks)
        channels = {f"block{number}": tower.width for number in self.tap_blocks}
        channels[CLIP_FEATURE] = tower.embed_dim
        self._out_features = list(channels)
        self._out_feature_channels = channels
        self._out_feature_strides = dict.fromkeys(channels, tower.patch_size)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read MODEL.CLIP.TAP_BLOCKS, and the rest of MODEL.CLIP by ``build_image_tower``."""
        tower = build_image_tower(cfg, reads_embedding=False, used=("TAP_BLOCKS",))
        return {
            "tower": tower,
            "tap_blocks": cfg.MODEL.CLIP.TAP_BLOCKS,
            "dense_form": tower.dense_form,
            "any_form": tower.any_form,
            "trainable_blocks": tower.trained_blocks,
            "trainable_parts": tower.trained_parts,
            "drop_path": tower.drop_path,
        }

    @property
    def dense_form(self) -> DenseForm:
        """Form of the tower's dense map."""
        return self.tower.dense_form

    @property
    def trainable_blocks(self) -> int:
        """Number of the tower's last blocks that are trained; -1: the whole tower."""
        return self.tower.trained_blocks

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
        """Set the mode; a frozen tower stays in eval mode."""
        super().train(mode)
        self.tower.train(mode and self.trainable_blocks != 0)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features, of ceil(H / patch) rows, by name.

        Images are (N, 3, H, W) RGB, normalised with CLIP's mean and std; sides that are no multiple
        of the patch are padded with zeros.
        """
        learns = self.trainable_blocks != 0 and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            dense = self.tower.forward_dense(images, self.tap_blocks)
        taps = zip(self.tap_blocks, dense.blocks, strict=True)
        features = {f"block{number}": output for number, output in taps}
        features[CLIP_FEATURE] = dense.embedding
        return features
