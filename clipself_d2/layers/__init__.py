"""Tensor maths without config or registry."""

from clipself_d2.layers.crop_resize import resize_crops, resize_longest
from clipself_d2.layers.region_pool import (
    box_masks,
    mask_embeddings,
    masked_attention,
    roi_embeddings,
)
from clipself_d2.layers.score_fusion import fuse_scores
from clipself_d2.layers.text_classifier import SigmoidTextClassifier, TextClassifier

__all__ = [
    "SigmoidTextClassifier",
    "TextClassifier",
    "box_masks",
    "fuse_scores",
    "mask_embeddings",
    "masked_attention",
    "resize_crops",
    "resize_longest",
    "roi_embeddings",
]
