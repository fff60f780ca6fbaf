"""The region proposal network of F-ViT: a head with norms, and objectness blended with CLIP's.

Legend: N images, K sentences, D joint embedding, A anchors a cell, h w cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.structures import Boxes
from torch import Tensor

from clipself_d2.backbones.clip_vit import CLIP_FEATURE
from clipself_d2.parts.text_embeddings import read_text_embeddings
from clipself_d2.vocabulary import Vocabulary

# Ours; those of the paper, 30 of each, are not published.
FOREGROUND = ("object", "thing", "item", "animal", "person", "vehicle", "tool", "food", "toy")
BACKGROUND = ("background", "sky", "ground", "wall", "water", "grass", "floor", "road", "texture")
# Multiplier of CLIP's cosines.
_SCALE = 100.0
# Probabilities are kept this far from 0 and 1, where logits are infinite.
_EDGE = 1e-6


class NormRPNHead(StandardRPNHead):
    """Detectron2's RPN head with a norm between each 3 x 3 convolution and its ReLU.

    The convolutions then have no bias. All levels share the norm, as they share the weights.

    Args:
        norm: Detectron2's name of the norm; "" is Detectron2's head.
        kwargs: Keyword arguments of ``StandardRPNHead``.

    Reference: F-ViT on OV-LVIS, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(self, *, norm: str = "", **kwargs: object) -> None:
        super().__init__(**kwargs)
        # The parent initialises biases, so norms come after it.
        for conv in self.conv.modules():
            if isinstance(conv, Conv2d) and norm:
                conv.norm = get_norm(norm, conv.out_channels)
                conv.bias = None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read MODEL.RPN, and the norm of MODEL.FPN."""
        return {**super().from_config(cfg, input_shape), "norm": cfg.MODEL.FPN.NORM}


class JointRPN(RPN):
    """Detectron2's RPN, which decodes the boxes of all levels at once instead of one by one.

    The boxes are the same to the bit; a GPU has a fifth of the operations to launch for them.
    """

    def _decode_proposals(self, anchors: list[Boxes], deltas: list[Tensor]) -> list[Tensor]:
        boxes = super()._decode_proposals([Boxes.cat(anchors)], [torch.cat(deltas, dim=1)])[0]
        return list(boxes.split([level.tensor.shape[0] for level in anchors], dim=1))


class BlendedRPN(JointRPN):
    """Detectron2's RPN that also asks CLIP, in tests, whether a cell shows a thing.

    The dense CLIP map is scored against words of things and of background, and the share of the
    things is resized to each level of the pyramid; it has no parameters. Training is unchanged, so
    that the blend can be tried on a trained detector.

    Args:
        text_KD: Unit-norm embeddings of words, things first.
        num_things: Number of things among them.
        weight: Share w of CLIP, in [0, 1]: the objectness is (1 - w) sigmoid(logit) + w CLIP's.
        kwargs: Keyword arguments of ``RPN``.

    Reference: NoOVD, arXiv 2603.21069, of which no code is public: its test-time blend, with weight
    0.5, by a second-hand summary. Differs: the map of the last block alone, and words of our own.
    """

    text_KD: Tensor

    @configurable
    def __init__(
        self, *, text_KD: Tensor, num_things: int, weight: float = 0.5, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self.register_buffer("text_KD", text_KD, persistent=False)
        self.num_things, self.weight = num_things, weight
        self._levels: list[Tensor] = []

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, object]) -> dict[str, object]:
        """Read MODEL.RPN, MODEL.OPEN_VOCAB.CLIP_OBJECTNESS and the CLIP's text tower."""
        words = Vocabulary.from_names([*FOREGROUND, *BACKGROUND])
        return {
            **super().from_config(cfg, input_shape),
            "text_KD": read_text_embeddings(cfg, words, same_names=False).embeddings_KD,
            "num_things": len(FOREGROUND),
            "weight": cfg.MODEL.OPEN_VOCAB.CLIP_OBJECTNESS,
        }

    def forward(self, images: object, features: dict[str, Tensor], *args: object) -> object:
        """Propose boxes; arguments and results are those of ``RPN``."""
        self._levels = []
        if not self.training and self.weight:
            things = thing_share(features[CLIP_FEATURE], self.text_KD, self.num_things)
            shapes = [features[name].shape for name in self.in_features]
            sizes = [(shape[-2], shape[-1]) for shape in shapes]
            self._levels = share_pyramid(things, sizes)
        return super().forward(images, features, *args)

    def predict_proposals(
        self, anchors: list[object], logits: list[Tensor], *args: object
    ) -> object:
        """Decode boxes after the blend; arguments and results are those of ``RPN``."""
        if self._levels:
            pairs = zip(logits, self._levels, strict=True)
            logits = [blend(logit, share, self.weight) for logit, share in pairs]
        return super().predict_proposals(anchors, logits, *args)


def thing_share(dense: Tensor, text_KD: Tensor, num_things: int) -> Tensor:
    """Share of the things, which are first, in the softmax of every cell over all words.

    From (N, D, h, w), unit norm in every cell, to (N, 1, h, w).
    """
    logits = _SCALE * torch.einsum("ndhw,kd->nkhw", dense, text_KD.to(dense))
    return logits.softmax(1)[:, :num_things].sum(1, keepdim=True)


def share_pyramid(share: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Resize a map (N, 1, h, w) to the (height, width) of each level of a pyramid.

    It is averaged where the level is coarser, interpolated where it is finer.
    """
    return [
        F.adaptive_avg_pool2d(share, size)
        if size[0] <= share.shape[2]
        else F.interpolate(share, size, mode="bilinear", align_corners=False)
        for size in sizes
    ]


def blend(logits: Tensor, share: Tensor, weight: float) -> Tensor:
    """Mix the objectness logits of a level's anchors with CLIP's probabilities of their cells.

    (N, Hi * Wi * A), anchors of a cell side by side, with (N, 1, Hi, Wi) of the share ``weight``.
    """
    cells = share.flatten(1)
    spread = cells.repeat_interleave(logits.shape[1] // cells.shape[1], dim=1)
    mixed = (1 - weight) * logits.sigmoid() + weight * spread
    return torch.logit(mixed, eps=_EDGE)
