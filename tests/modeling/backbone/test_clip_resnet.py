"""CLIP's ResNet as a backbone: golden features, what is frozen, statistics that stay."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from clipself_d2.clip.resnet_tower import ResNetTower
from clipself_d2.config import add_clipself_config
from clipself_d2.modeling.backbone import clip_resnet
from clipself_d2.modeling.backbone.clip_resnet import ClipResNet


@pytest.fixture
def cfg(monkeypatch, kit):
    """Config whose CLIP is the golden tower."""
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.MODEL.CLIP.NAME = "RN50-quickgelu"
    cfg.MODEL.BACKBONE.NAME = "build_clip_resnet_backbone"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.PIXEL_MEAN, cfg.INPUT.FORMAT = [122.8, 116.7, 104.1], "RGB"
    monkeypatch.setattr(clip_resnet, "load_any_tower", lambda *_, **__: kit.tower())
    return cfg


def test_features_and_frozen_parts_are_those_of_the_published_code(kit) -> None:
    golden = kit.pt("backbone_roi")
    backbone = ClipResNet(tower=kit.tower(), freeze_at=2).train()
    torch.testing.assert_close(backbone(golden["image"])["res4"], golden["res4"])
    trained = {n for n, p in backbone.tower.visual.named_parameters() if p.requires_grad}
    assert trained == {name for name, trains in golden["requires_grad"].items() if trains}


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [(0, set()), (1, {"conv"}), (3, {"conv", "layer1", "layer2"}), (5, {"conv", "layer"})],
)
def test_stages_are_frozen_from_below(kit, freeze_at, frozen) -> None:
    backbone = ClipResNet(tower=kit.tower(), freeze_at=freeze_at)
    for name, parameter in backbone.tower.visual.named_parameters():
        is_norm = ".bn" in name or name.startswith("bn") or "downsample.1" in name
        expected = not is_norm and not name.startswith(tuple(frozen))
        assert parameter.requires_grad == expected, name


def test_training_keeps_the_statistics(kit) -> None:
    backbone = ClipResNet(tower=kit.tower()).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64)).popitem()[1].sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in backbone.named_buffers())
    assert not any(m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))


def test_checkpoint_without_statistics_leaves_them(kit) -> None:
    backbone = ClipResNet(tower=kit.tower())
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    part = {k: v for k, v in backbone.state_dict().items() if "running" not in k}
    backbone.load_state_dict(dict(part), strict=False)
    assert all(torch.equal(v, before[k]) for k, v in backbone.named_buffers())
    assert any(not torch.equal(v, torch.zeros_like(v)) for k, v in before.items() if "mean" in k)


def test_c4_backbone_gives_res4_with_a_pool_that_trains_for_its_heads_alone(cfg) -> None:
    backbone = build_backbone(cfg)
    shape = backbone.output_shape()
    assert {k: (v.channels, v.stride) for k, v in shape.items()} == {"res4": (64, 16)}
    pool = backbone.tower.visual.attnpool
    assert not any(p.requires_grad for p in pool.parameters())
    cfg.MODEL.ROI_HEADS.NAME = "CLIPRes5ROIHeads"
    pool = build_backbone(cfg).tower.visual.attnpool
    assert all(p.requires_grad for p in pool.parameters())


def test_fpn_backbone_has_a_level_for_each_stage(cfg) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_clip_resnet_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    levels = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = levels, levels[:4]
    backbone = build_backbone(cfg)
    features = backbone(torch.randn(1, 3, 64, 96))
    assert {k: tuple(v.shape[1:]) for k, v in features.items()} == {
        "p2": (8, 16, 24),
        "p3": (8, 8, 12),
        "p4": (8, 4, 6),
        "p5": (8, 2, 3),
        "p6": (8, 1, 2),
    }
    sum(v.sum() for v in features.values()).backward()
    idle = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_bad_settings_name_their_keys(kit, cfg, monkeypatch) -> None:
    with pytest.raises(ValueError, match="FREEZE_AT is 6"):
        ClipResNet(tower=kit.tower(), freeze_at=6)
    with pytest.raises(ValueError, match="OUT_FEATURES"):
        ClipResNet(tower=kit.tower(), out_features=["res1"])
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        build_backbone(cfg)
    monkeypatch.setattr(clip_resnet, "load_any_tower", lambda *_, **__: nn.Identity())
    with pytest.raises(ValueError, match=r"needs a CLIP ResNet"):
        build_backbone(cfg)


def test_tower_is_found_by_its_name(kit) -> None:
    tower = kit.tower()
    assert isinstance(tower, ResNetTower)
    backbone = ClipResNet(tower=tower, out_features=["res5", "res2"])
    assert backbone.output_shape() == {
        "res2": ShapeSpec(channels=16, stride=4),
        "res5": ShapeSpec(channels=128, stride=32),
    }
