"""What the image tower says of a picture, kept, so that it is computed once.

Legend: R boxes, D joint embedding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from clipself_d2.backbones.clip_vit import CLIP_FEATURE
from clipself_d2.layers.region_pool import roi_embeddings

Encoder = Callable[[Tensor], Any]


@dataclass
class EncodedPicture:
    """A picture whose features are kept once they are computed; of one predictor.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        name: What an error calls it.
        features: Of the model's backbone; None until the picture is first looked at.
    """

    image: np.ndarray
    name: str
    features: Any = None


@contextmanager
def kept_features(model: nn.Module, known: Any = None) -> Iterator[list[Any]]:
    """Keep what a model's backbone returns, of CAT-Seg its ``encode_views``.

    Yields a list to which the features of every pass are added. Where those of the one picture are
    ``known``, they are returned instead of running anything.
    """
    whole = hasattr(model, "encode_views")
    owner: Any = model if whole else model.backbone
    name = "encode_views" if whole else "forward"
    encode: Encoder = getattr(owner, name)
    seen: list[Any] = []

    def look(images: Tensor) -> Any:
        seen.append(encode(images) if known is None else known)
        return seen[-1]

    setattr(owner, name, look)
    try:
        yield seen
    finally:
        delattr(owner, name)


def dense_map(model: nn.Module, features: Any) -> tuple[Tensor, float]:
    """Find the dense map (N, D, h, w), unit norm in every cell, and the input pixels per cell."""
    backbone: Any = getattr(model, "backbone", None)
    if backbone is None or CLIP_FEATURE not in backbone.output_shape():
        raise ValueError(
            f"the backbone of this {type(model).__name__} has no dense CLIP map to take embeddings "
            "of regions from; take a config whose backbone has one, such as "
            "configs/emoji/fvit_clipself.yaml"
        )
    return features[CLIP_FEATURE], float(backbone.output_shape()[CLIP_FEATURE].stride)


def embed_boxes(
    dense_Dhw: Tensor, stride: float, boxes_R4: Tensor, scale: tuple[float, float]
) -> Tensor:
    """Embed boxes by the mean of the dense CLIP map inside of them: (R, D) float32, unit norm.

    Args:
        dense_Dhw: Map of one picture.
        stride: Input pixels per cell.
        boxes_R4: (R, 4) XYXY px of the picture.
        scale: Input pixels per pixel of the picture, of width and height.
    """
    # From pixels of the picture to those of the input, which the stride counts.
    factors = boxes_R4.new_tensor([*scale, *scale])
    return roi_embeddings(dense_Dhw[None], [boxes_R4 * factors], stride)
