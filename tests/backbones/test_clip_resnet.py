"""CLIP's ResNet as a backbone: golden features, what is frozen, statistics that stay."""

import open_clip
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from clipself_d2.backbones.clip_resnet import ClipResNet
from clipself_d2.clip import load_tower
from clipself_d2.clip.towers import resnet
from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.config import add_clipself_config
from clipself_d2.parts import image_tower

# Name: cells of a pooled region's side, channels of res4, width of the embedding.
FAMILY = {
    "RN50-quickgelu": (14, 1024, 1024),
    "RN101-quickgelu": (14, 1024, 512),
    "RN50x4-quickgelu": (18, 1280, 640),
    "RN50x16-quickgelu": (24, 1536, 768),
    "RN50x64-quickgelu": (28, 2048, 1024),
}


@pytest.fixture
def cfg(monkeypatch, kit):
    """Config whose CLIP is the golden tower."""
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.MODEL.CLIP.NAME = "RN50-quickgelu"
    cfg.MODEL.BACKBONE.NAME = "build_clip_resnet_backbone"
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.PIXEL_MEAN, cfg.INPUT.FORMAT = [122.8, 116.7, 104.1], "RGB"
    monkeypatch.setattr(image_tower, "load_tower", lambda *_, **__: kit.tower())
    return cfg


def test_features_and_frozen_parts_are_those_of_the_published_code(kit) -> None:
    golden = kit.pt("backbone_roi")
    backbone = ClipResNet(tower=kit.tower(), trainable_blocks=3).train()
    torch.testing.assert_close(backbone(golden["image"])["res4"], golden["res4"])
    trained = {n for n, p in backbone.tower.visual.named_parameters() if p.requires_grad}
    assert trained == {name for name, trains in golden["requires_grad"].items() if trains}


@pytest.mark.parametrize(
    ("trainable_blocks", "frozen"),
    [
        (-1, set()),
        (4, {"conv"}),
        (2, {"conv", "layer1", "layer2"}),
        (0, {"conv", "layer", "attnpool"}),
    ],
)
def test_stages_are_frozen_from_below(kit, trainable_blocks, frozen) -> None:
    backbone = ClipResNet(tower=kit.tower(), trainable_blocks=trainable_blocks)
    for name, parameter in backbone.tower.visual.named_parameters():
        is_norm = ".bn" in name or name.startswith("bn") or "downsample.1" in name
        expected = not is_norm and not name.startswith(tuple(frozen))
        assert parameter.requires_grad == expected, name


def test_training_keeps_the_statistics(kit) -> None:
    backbone = ClipResNet(tower=kit.tower(), trainable_blocks=3).train()
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


def test_c4_backbone_gives_res4_with_a_pool_that_its_heads_train(cfg) -> None:
    backbone = build_backbone(cfg)
    shape = backbone.output_shape()
    assert {k: (v.channels, v.stride) for k, v in shape.items()} == {"res4": (64, 16)}
    pool = backbone.tower.visual.attnpool
    assert not any(p.requires_grad for p in pool.parameters())


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
    with pytest.raises(ValueError, match="has 4; 0 trains none"):
        ClipResNet(tower=kit.tower(), trainable_blocks=5)
    with pytest.raises(ValueError, match="OUT_FEATURES"):
        ClipResNet(tower=kit.tower(), out_features=["res1"])
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        build_backbone(cfg)
    cfg.INPUT.FORMAT = "RGB"
    monkeypatch.setattr(image_tower, "load_tower", lambda *_, **__: load_tower("ViT-Ti-8-emoji"))
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


def random_tower(name: str) -> ResNetTower:
    """The image tower of a published CLIP at full size; its text tower would double the memory."""
    model = open_clip.get_model_config(name)
    sizes = model["vision_cfg"]
    width = sizes["width"]
    visual = ModifiedResNet(
        sizes["layers"], model["embed_dim"], width * 32 // 64, sizes["image_size"], width
    )
    mean, std = (122.8, 116.7, 104.1), (68.5, 66.6, 70.3)
    return ResNetTower(visual=visual, name=name, pixel_mean=mean, pixel_std=std).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY)
def test_the_family_at_full_size(cfg, monkeypatch, name: str) -> None:
    """C4, FPN, and regions of which the attention pool has positions that are not interpolated."""
    torch.manual_seed(0)
    tower = random_tower(name)
    monkeypatch.setattr(image_tower, "load_tower", lambda *_, **__: tower)
    side, channels, width = FAMILY[name]
    # What CLIPRes5ROIHeads asks MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION to be.
    assert side == 2 * tower.image_size // tower.patch_size
    backbone = build_backbone(cfg)
    assert backbone.output_shape()["res4"] == ShapeSpec(channels=channels, stride=16)
    assert tower.embed_dim == width
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert backbone(image)["res4"].shape == (1, channels, 4, 6)
        regions = tower.forward_res5(torch.randn(2, channels, side, side))
        assert regions.shape == (2, 2 * channels, side // 2, side // 2)
        before = tower.pool(regions)
        monkeypatch.setattr(resnet, "resize_positions", lambda table, *_: table)
        assert torch.equal(tower.pool(regions), before)
    assert before.shape == (2, width)
    cfg.MODEL.BACKBONE.NAME = "build_clip_resnet_fpn_backbone"
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.ROI_HEADS.NAME = 8, "StandardROIHeads"
    levels = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.IN_FEATURES, cfg.MODEL.ROI_HEADS.IN_FEATURES = levels, levels[:4]
    with torch.no_grad():
        features = build_backbone(cfg)(image)
    assert {key: tuple(value.shape[2:]) for key, value in features.items()} == {
        **{"p2": (16, 24), "p3": (8, 12), "p4": (4, 6)},
        **{"p5": (2, 3), "p6": (1, 2)},
    }
