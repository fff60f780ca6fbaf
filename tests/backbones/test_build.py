"""The backbones by name: stock detectors by yaml alone, and yaml equal to LazyConfig."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import GeneralizedRCNNWithTTA, build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from clipself_d2.backbones import ClipViT, ClipViTPyramid
from clipself_d2.config import add_clipself_config

LAZY = Path(__file__).parents[2] / "configs" / "lazy" / "common" / "clip_vit_fpn.py"
LEVELS = ["p2", "p3", "p4", "p5", "p6"]


@pytest.fixture
def rcnn_cfg(clip_cfg):
    """Detectron2's Faster R-CNN on the pyramid; every anchor and proposal is sampled."""
    cfg = clip_cfg
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_clip_vit_fpn_backbone"
    cfg.MODEL.RPN.IN_FEATURES = LEVELS
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [96]]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 100_000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = LEVELS[:4]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    torch.manual_seed(0)
    return cfg


def read_levels(cfg: CfgNode, names: list[str]) -> None:
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = names
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8]]


def make_batch() -> list[dict]:
    batch = []
    for size, box in (((60, 90), [5.0, 6.0, 40.0, 50.0]), ((64, 48), [0.0, 0.0, 20.0, 30.0])):
        truth = Instances(size, gt_boxes=Boxes(torch.tensor([box])), gt_classes=torch.tensor([1]))
        batch.append({"image": torch.randint(0, 256, (3, *size)).float(), "instances": truth})
    return batch


@pytest.mark.parametrize("trainable_blocks", [0, 1, -1])
def test_stock_faster_rcnn_trains_every_parameter_by_yaml_alone(rcnn_cfg, trainable_blocks):
    rcnn_cfg.MODEL.CLIP.TRAINABLE_BLOCKS = trainable_blocks
    model = build_model(rcnn_cfg).train()
    with EventStorage():
        losses = model(make_batch())
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trained_tower = False
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            trained_tower |= ".tower." in name
    assert trained_tower == (trainable_blocks != 0)


def features_of(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        return model.backbone(torch.randn(1, 3, 96, 96))["p3"]


def test_drop_path_changes_a_detector_in_training_alone(rcnn_cfg):
    rcnn_cfg.MODEL.CLIP.TRAINABLE_BLOCKS, rcnn_cfg.MODEL.CLIP.DROP_PATH = -1, 0.9
    rcnn_cfg.MODEL.FPN.NORM = "GN"
    model = build_model(rcnn_cfg).train()
    images = torch.randn(4, 3, 96, 96)
    with torch.no_grad():
        assert not torch.equal(model.backbone(images)["p3"], model.backbone(images)["p3"])
        model.eval()
        assert torch.equal(model.backbone(images)["p3"], model.backbone(images)["p3"])


def test_windows_change_a_detector_unless_every_block_is_global(rcnn_cfg):
    def build(size: int, blocks: list[int]) -> nn.Module:
        rcnn_cfg.MODEL.CLIP.WINDOW_SIZE, rcnn_cfg.MODEL.CLIP.GLOBAL_BLOCKS = size, blocks
        torch.manual_seed(0)
        return build_model(rcnn_cfg).eval()

    whole = build(0, [])
    number = whole.backbone.bottom_up.tower.num_blocks
    everywhere, windows = build(3, list(range(number))), build(3, [number - 1])
    torch.testing.assert_close(features_of(everywhere), features_of(whole))
    assert not torch.allclose(features_of(windows), features_of(whole), atol=1e-4)
    # Weights have the same names, so that windows can be switched on later.
    assert windows.state_dict().keys() == whole.state_dict().keys()


def test_detectron2s_augmented_testing_takes_the_backbone(rcnn_cfg):
    rcnn_cfg.TEST.AUG.MIN_SIZES, rcnn_cfg.TEST.AUG.MAX_SIZE = (48, 64), 96
    rcnn_cfg.freeze()
    model = GeneralizedRCNNWithTTA(rcnn_cfg, build_model(rcnn_cfg).eval())
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = model([{"image": image, "height": 96, "width": 128}])[0]["instances"]
    assert found.image_size == (96, 128)
    assert len(found) > 0
    assert found.scores.isfinite().all()


def test_stock_faster_rcnn_detects_on_a_rectangle(rcnn_cfg):
    model = build_model(rcnn_cfg).eval()
    image = torch.randint(0, 256, (3, 50, 75)).float()
    with torch.no_grad():
        found = model([{"image": image, "height": 100, "width": 150}])[0]["instances"]
    assert found.image_size == (100, 150)
    assert len(found) > 0
    assert found.scores.isfinite().all()
    assert found.pred_boxes.tensor[:, 2].max() <= 150
    assert found.pred_boxes.tensor[:, 3].max() <= 100


def test_stock_heads_never_see_the_clip_map(rcnn_cfg, monkeypatch):
    model = build_model(rcnn_cfg).eval()
    image = [{"image": torch.randint(0, 256, (3, 50, 75)).float()}]
    with torch.no_grad():
        found = model(image)[0]["instances"]
        whole = model.backbone.forward
        monkeypatch.setattr(
            model.backbone, "forward", lambda x: {n: f for n, f in whole(x).items() if n != "clip"}
        )
        without = model(image)[0]["instances"]
    torch.testing.assert_close(without.scores, found.scores, rtol=0, atol=0)


def test_yaml_sets_every_option_of_the_pyramid(rcnn_cfg):
    rcnn_cfg.MODEL.CLIP.TAP_BLOCKS = [1, 4]
    rcnn_cfg.MODEL.CLIP_FPN.STRIDES = [8, 16]
    read_levels(rcnn_cfg, ["p3", "p4"])
    rcnn_cfg.MODEL.FPN.OUT_CHANNELS = 48
    rcnn_cfg.MODEL.FPN.NORM = "LN"
    pyramid = build_backbone(rcnn_cfg)
    assert isinstance(pyramid, ClipViTPyramid)
    assert pyramid.bottom_up.tap_blocks == (1, 4)
    assert pyramid.strides == (8, 16)
    assert pyramid.output_shape()["p3"].channels == 48
    assert type(pyramid.outputs[0].norm).__name__ == "LayerNorm"


def test_yaml_without_taps_takes_one_block_for_each_stride(rcnn_cfg):
    assert build_backbone(rcnn_cfg).bottom_up.tap_blocks == (1, 2, 4, 5)
    rcnn_cfg.MODEL.CLIP_FPN.STRIDES = [8, 16]
    read_levels(rcnn_cfg, ["p3", "p4"])
    assert build_backbone(rcnn_cfg).bottom_up.tap_blocks == (2, 5)


@pytest.mark.parametrize("kind", ["", "simple_"])
def test_a_builder_a_kind(rcnn_cfg, kind):
    def build(prefix: str) -> ClipViTPyramid:
        rcnn_cfg.MODEL.BACKBONE.NAME = f"build_{prefix}clip_vit_{kind}fpn_backbone"
        return build_backbone(rcnn_cfg)

    plain, dense, semantic = build(""), build("retinanet_"), build("semantic_")
    assert list(plain.output_shape()) == [*LEVELS, "clip"]
    assert list(dense.output_shape()) == ["p3", "p4", "p5", "p6", "p7", "clip"]
    assert isinstance(dense.top_block, LastLevelP6P7)
    assert list(semantic.output_shape()) == list(plain.output_shape())
    sides = [pyramid.size_divisibility for pyramid in (plain, dense, semantic)]
    assert sides == [8, 8, 32]
    # A level that is left out goes with its block.
    last = dense.bottom_up.tap_blocks
    assert last == plain.bottom_up.tap_blocks[-len(last) :]


def test_builders_do_not_look_at_the_detector(rcnn_cfg):
    expected = build_backbone(rcnn_cfg).output_shape()
    for name in ("RetinaNet", "SemanticSegmentor", "TheirOwn"):
        rcnn_cfg.MODEL.META_ARCHITECTURE = name
        pyramid = build_backbone(rcnn_cfg)
        assert pyramid.output_shape() == expected
        assert pyramid.size_divisibility == 8


def test_yaml_and_lazy_config_build_the_same_pyramid(rcnn_cfg):
    rcnn_cfg.MODEL.CLIP.TAP_BLOCKS = [1, 2, 4, 5]
    by_yaml = build_backbone(rcnn_cfg).eval()
    lazy = LazyConfig.load(str(LAZY)).backbone
    lazy.backbone.tower.name, lazy.backbone.tower.weights = "ViT-Ti-8-emoji", None
    lazy.backbone.tap_blocks = [1, 2, 4, 5]
    lazy.out_channels, lazy.norm = 32, "GN"
    by_lazy = instantiate(lazy).eval()
    assert by_lazy.output_shape() == by_yaml.output_shape()
    by_lazy.load_state_dict(by_yaml.state_dict(), strict=True)
    images = torch.randn(1, 3, 40, 72)
    torch.testing.assert_close(by_lazy(images), by_yaml(images), rtol=0, atol=0)


def test_lazy_config_states_the_defaults_of_the_yaml_keys():
    lazy = LazyConfig.load(str(LAZY)).backbone
    cfg = get_cfg()
    add_clipself_config(cfg)
    fpn, clip = cfg.MODEL.CLIP_FPN, cfg.MODEL.CLIP
    assert (list(lazy.strides), lazy.out_channels) == (fpn.STRIDES, cfg.MODEL.FPN.OUT_CHANNELS)
    assert str(lazy.backbone.dense_form) == clip.DENSE_FORM
    assert lazy.backbone.trainable_blocks == clip.TRAINABLE_BLOCKS
    assert (lazy.backbone.tower.name, lazy.backbone.tower.precision) == (clip.NAME, clip.PRECISION)


def test_plain_backbone_is_registered(clip_cfg):
    clip_cfg.MODEL.BACKBONE.NAME = "build_clip_vit_backbone"
    read_levels(clip_cfg, ["clip"])
    backbone = build_backbone(clip_cfg)
    assert isinstance(backbone, ClipViT)
    assert list(backbone.output_shape()) == ["clip"]
