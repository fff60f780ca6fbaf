"""ClipViT: the tower's numbers, freezing, and what Detectron2 asks of a backbone."""

import logging

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList

from clipself_d2.backbones import ClipViT
from clipself_d2.backbones.clip_vit import Features


def test_features_are_those_of_the_tower(make_tower):
    tower = make_tower(patch_size=8)
    backbone = ClipViT(tower=tower, tap_blocks=[1, 3])
    images = torch.randn(2, 3, 24, 40)
    features = backbone(images)
    expected = tower.forward_dense(images, (1, 3), "clipself")
    assert set(features) == {"block1", "block3", "clip"}
    torch.testing.assert_close(features["clip"], expected.embedding, rtol=0, atol=0)
    torch.testing.assert_close(features["block1"], expected.blocks[0], rtol=0, atol=0)
    torch.testing.assert_close(features["block3"], expected.blocks[1], rtol=0, atol=0)


def test_last_block_selects_its_attention(make_tower):
    tower = make_tower(patch_size=8)
    images = torch.randn(1, 3, 32, 32)
    attended = ClipViT(tower=tower, dense_form="attention")(images)["clip"]
    expected = tower.forward_dense(images, (), "attention").embedding
    torch.testing.assert_close(attended, expected, rtol=0, atol=0)
    assert (attended - ClipViT(tower=tower)(images)["clip"]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(32, 48), (30, 41), (9, 70)])
def test_output_shape_is_true(make_tower, size):
    backbone = ClipViT(tower=make_tower(patch_size=8), tap_blocks=[0, 3])
    features = backbone(torch.randn(1, 3, *size))
    shapes = backbone.output_shape()
    assert set(shapes) == set(features)
    for name, spec in shapes.items():
        cells = tuple(-(-side // spec.stride) for side in size)
        assert features[name].shape == (1, spec.channels, *cells)
    assert shapes["clip"].channels == 16
    assert shapes["block0"].channels == 32


def test_frozen_tower_stays_in_eval_and_gives_no_gradient(make_tower):
    backbone = ClipViT(tower=make_tower(), tap_blocks=[3]).train()
    assert backbone.training
    assert not any(module.training for module in backbone.tower.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    features = backbone(torch.randn(1, 3, 32, 32))
    assert not any(feature.requires_grad for feature in features.values())
    assert all(feature.dtype == torch.float32 for feature in features.values())


def test_features_are_float32_under_autocast(make_tower):
    backbone = ClipViT(tower=make_tower(), tap_blocks=[3])
    images = torch.randn(1, 3, 32, 32)
    plain = backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(images)
    # The tower computes in the trainer's number type; its features leave it in single precision.
    for name, feature in features.items():
        assert feature.dtype == torch.float32
        similarity = F.cosine_similarity(feature.flatten(1), plain[name].flatten(1))
        assert 0.99 < similarity.item() < 1.0 - 1e-7, name


@pytest.mark.parametrize("trainable_blocks", [1, 2])
def test_trainable_blocks_get_gradients_and_the_others_none(make_tower, trainable_blocks):
    backbone = ClipViT(
        tower=make_tower(), tap_blocks=[0, 3], trainable_blocks=trainable_blocks
    ).train()
    features = backbone(torch.randn(1, 3, 32, 32))
    assert not features["block0"].requires_grad
    features["block3"].square().sum().backward()
    blocks = backbone.tower.block_modules
    trained = {id(p) for block in blocks[4 - trainable_blocks :] for p in block.parameters()}
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name


def test_trained_tower_respects_no_grad_and_mode(make_tower):
    backbone = ClipViT(tower=make_tower(), tap_blocks=[3], trainable_blocks=1).train()
    assert backbone.tower.training
    assert not backbone.eval().tower.training
    with torch.no_grad():
        assert not backbone(torch.randn(1, 3, 32, 32))["block3"].requires_grad


@pytest.mark.parametrize("patch_size", [8, 14])
def test_detectron2_pads_images_to_whole_patches(make_tower, patch_size):
    backbone = ClipViT(tower=make_tower(patch_size=patch_size))
    assert backbone.padding_constraints == {"size_divisibility": patch_size}
    for constraints in (None, backbone.padding_constraints):
        images = ImageList.from_tensors(
            [torch.zeros(3, 50, 71)], backbone.size_divisibility, padding_constraints=constraints
        )
        height, width = images.tensor.shape[-2:]
        assert height % patch_size == 0
        assert width % patch_size == 0
        assert height - 50 < patch_size
        assert width - 71 < patch_size


def test_a_block_may_be_tapped_twice(make_tower):
    backbone = ClipViT(tower=make_tower(), tap_blocks=[3, 3])
    assert set(backbone(torch.randn(1, 3, 32, 32))) == {"block3", "clip"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dense_form": "mask"}, "dense form is 'mask'"),
        ({"tap_blocks": [0, 4]}, r"not \[4\]"),
        ({"tap_blocks": [-1]}, r"not \[-1\]"),
        ({"trainable_blocks": 5}, "5 trainable blocks"),
    ],
)
def test_wrong_options_are_refused(make_tower, options, message):
    with pytest.raises(ValueError, match=message):
        ClipViT(tower=make_tower(), **options)


def test_yaml_sets_every_option(clip_cfg):
    clip_cfg.MODEL.BACKBONE.NAME = "build_clip_vit_backbone"
    clip_cfg.MODEL.CLIP.TAP_BLOCKS = [1, 4]
    clip_cfg.MODEL.CLIP.DENSE_FORM = "attention"
    clip_cfg.MODEL.CLIP.TRAINABLE_BLOCKS = 2
    clip_cfg.MODEL.CLIP.PRECISION = "bf16"
    clip_cfg.MODEL.CLIP.DROP_PATH = 0.2
    clip_cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    clip_cfg.MODEL.RPN.IN_FEATURES = ["clip"]
    backbone = build_backbone(clip_cfg)
    assert isinstance(backbone, ClipViT)
    assert (backbone.tap_blocks, str(backbone.dense_form)) == ((1, 4), "attention")
    assert (backbone.trainable_blocks, backbone.tower.precision) == (2, "bf16")
    assert backbone.tower.name == "ViT-Ti-8-emoji"
    blocks = backbone.tower.block_modules
    # 0.2 in the last of six blocks, less in the one before, none in frozen ones.
    rates = [getattr(block.ls_1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0, 0, 0, 0.16, 0.2])


def test_all_blocks_and_the_embedding_are_trained_but_not_what_text_stands_behind(make_tower):
    backbone = ClipViT(tower=make_tower(), tap_blocks=[3], trainable_blocks=-1).train()
    assert backbone.tower.training
    backbone(torch.randn(1, 3, 64, 64))["block3"].square().sum().backward()
    frozen = {name for name, p in backbone.tower.named_parameters() if not p.requires_grad}
    assert frozen == {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"}
    for name, parameter in backbone.tower.named_parameters():
        assert (parameter.grad is not None) == (name not in frozen), name


def test_yaml_sets_windows_and_checkpointing(clip_cfg):
    images = torch.randn(1, 3, 32, 48)
    torch.manual_seed(0)
    plain = ClipViT(clip_cfg, ShapeSpec(channels=3))
    assert plain.tower.attention.window_size == 0
    assert not plain.tower.checkpointing
    clip_cfg.MODEL.CLIP.WINDOW_SIZE = 2
    clip_cfg.MODEL.CLIP.GLOBAL_BLOCKS = [1, 5]
    clip_cfg.MODEL.CLIP.ACTIVATION_CHECKPOINTING = True
    torch.manual_seed(0)
    windowed = ClipViT(clip_cfg, ShapeSpec(channels=3))
    assert windowed.tower.attention.global_blocks == (1, 5)
    assert windowed.tower.checkpointing
    assert (windowed(images)["clip"] - plain(images)["clip"]).abs().max() > 1e-4
    windowed.tower.set_attention(window_size=6, global_blocks=[1])
    torch.testing.assert_close(windowed(images)["clip"], plain(images)["clip"], rtol=0, atol=1e-5)


def test_wrong_windows_name_the_keys(clip_cfg):
    clip_cfg.MODEL.CLIP.WINDOW_SIZE, clip_cfg.MODEL.CLIP.GLOBAL_BLOCKS = 2, [6]
    with pytest.raises(ValueError, match=r"not \[6\] of global_blocks.*GLOBAL_BLOCKS"):
        ClipViT(clip_cfg, ShapeSpec(channels=3))
    clip_cfg.MODEL.CLIP.WINDOW_SIZE = -2
    with pytest.raises(ValueError, match="MODEL.CLIP.WINDOW_SIZE"):
        ClipViT(clip_cfg, ShapeSpec(channels=3))


def test_weights_go_before_pretrained_and_nothing_means_random(clip_cfg, monkeypatch, make_tower):
    asked = []
    monkeypatch.setattr(
        "clipself_d2.parts.image_tower.load_tower",
        lambda name, weights, precision: asked.append(weights) or make_tower(),
    )
    for pretrained, weights in (("", ""), ("emoji", ""), ("emoji", "student.pth")):
        clip_cfg.MODEL.CLIP.PRETRAINED, clip_cfg.MODEL.CLIP.WEIGHTS = pretrained, weights
        ClipViT(clip_cfg, ShapeSpec(channels=3))
    assert asked == [None, "emoji", "student.pth"]


def test_checkpoint_of_the_backbone_is_a_file_of_tower_weights(clip_cfg, tmp_path):
    student = ClipViT(clip_cfg, ShapeSpec(channels=3))
    path = tmp_path / "student.pth"
    torch.save({"model": student.tower.state_dict()}, path)
    clip_cfg.MODEL.CLIP.WEIGHTS = str(path)
    loaded = ClipViT(clip_cfg, ShapeSpec(channels=3))
    images = torch.randn(1, 3, 40, 64)
    torch.testing.assert_close(loaded(images), student(images), rtol=0, atol=0)


def test_pixels_of_another_model_are_warned_of(clip_cfg, caplog):
    with caplog.at_level(logging.WARNING, logger="clipself_d2"):
        ClipViT(clip_cfg, ShapeSpec(channels=3))
        # The mean and std of ImageNet in RGB, as F-ViT was published.
        clip_cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
        clip_cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
        ClipViT(clip_cfg, ShapeSpec(channels=3))
        assert not caplog.records
        clip_cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
        ClipViT(clip_cfg, ShapeSpec(channels=3))
    assert len(caplog.records) == 1
    assert "MODEL.PIXEL_STD" in caplog.records[0].getMessage()


def test_images_in_bgr_are_refused(clip_cfg):
    clip_cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ValueError, match="INPUT.FORMAT"):
        ClipViT(clip_cfg, ShapeSpec(channels=3))
    clip_cfg.INPUT.FORMAT = "RGB"
    clip_cfg.MODEL.PIXEL_MEAN = [103.53, 116.28, 123.675]
    with pytest.raises(ValueError, match="MODEL.PIXEL_MEAN"):
        ClipViT(clip_cfg, ShapeSpec(channels=3))


def test_grey_images_are_refused(clip_cfg):
    clip_cfg.MODEL.PIXEL_MEAN, clip_cfg.MODEL.PIXEL_STD = [120.0], [60.0]
    with pytest.raises(ValueError, match="MODEL.PIXEL_MEAN has 1 values"):
        ClipViT(clip_cfg, ShapeSpec(channels=1))


def test_it_is_a_dict_but_for_a_missing_name() -> None:
    given = {"p2": ShapeSpec(stride=4), "clip": ShapeSpec(stride=8)}
    features = Features(given)
    assert features == given
    assert features.get("p7") is None
    assert "p7" not in features
    with pytest.raises(ValueError, match=r"feature 'p7', but the backbone gives p2, clip;"):
        features["p7"]
