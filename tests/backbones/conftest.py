"""Tiny image towers of any patch size, and a config with this plugin's keys."""

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva

from clipself_d2.clip.model import build_tower
from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.config import add_clipself_config

MakeTower = Callable[..., VisionTower]
EMOJI_MEAN, EMOJI_STD = [122.7709, 116.7460, 104.0937], [68.5005, 66.6322, 70.3232]


@pytest.fixture
def make_tower() -> MakeTower:
    """Builder of random ViTs of width 32 and joint width 16 with a native grid of 4 x 4."""

    def make(patch_size: int = 16, layers: int = 4) -> VisionTower:
        torch.manual_seed(0)
        visual = VisionTransformer(
            image_size=4 * patch_size,
            patch_size=patch_size,
            width=32,
            layers=layers,
            heads=2,
            mlp_ratio=2.0,
            output_dim=16,
        )
        red, green, blue = EMOJI_MEAN
        return build_tower(
            visual, name="tiny", pixel_mean=(red, green, blue), pixel_std=(68.5, 66.6, 70.3)
        ).eval()

    return make


@pytest.fixture
def make_eva_tower() -> MakeTower:
    """Builder of random EVA02-CLIP towers: patch 14, width 32, 4 blocks, joint width 16."""

    def make() -> VisionTower:
        torch.manual_seed(0)
        visual = TimmModel("eva02_tiny_patch14_224", embed_dim=16, pool="token", proj="")
        visual.trunk = Eva(
            img_size=56,
            patch_size=14,
            embed_dim=32,
            depth=4,
            num_heads=2,
            num_classes=16,
            global_pool="token",
            qkv_fused=False,
            swiglu_mlp=True,
            scale_mlp=True,
            scale_attn_inner=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(4, 4),
        )
        return build_tower(
            visual, name="eva", pixel_mean=(122.8, 116.7, 104.1), pixel_std=(68.5, 66.6, 70.3)
        ).eval()

    return make


@pytest.fixture
def clip_cfg() -> CfgNode:
    """Config of the embedded ViT-Ti-8 with random weights, on the CPU, in RGB."""
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.CLIP.NAME = "ViT-Ti-8-emoji"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = EMOJI_MEAN, EMOJI_STD
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.NORM = "GN"
    return cfg
