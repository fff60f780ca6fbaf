"""CLIP towers and weights; the only package that imports open_clip and timm."""

from clipself_d2.clip.hub import push, save_pretrained
from clipself_d2.clip.model import ClipModel, load_clip, load_tower
from clipself_d2.clip.text import TextEncoder
from clipself_d2.clip.towers.contract import DenseFeatures, VisionTower

__all__ = [
    "ClipModel",
    "DenseFeatures",
    "TextEncoder",
    "VisionTower",
    "load_clip",
    "load_tower",
    "push",
    "save_pretrained",
]
