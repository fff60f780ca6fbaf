"""A ViT behind the names, strides and channels of a ResNet's stages."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_resnet_backbone

from clipself_d2.backbones import ClipViT, ClipViTStages
from clipself_d2.backbones.stages import stage_strides


@pytest.mark.parametrize("dilation", [1, 2])
def test_shapes_are_those_of_the_resnet_whose_place_it_takes(clip_cfg, dilation):
    resnets = clip_cfg.MODEL.RESNETS
    resnets.OUT_FEATURES, resnets.RES5_DILATION = ["res2", "res3", "res4", "res5"], dilation
    clip_cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    clip_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res5"]
    resnet = build_resnet_backbone(clip_cfg, ShapeSpec(channels=3)).output_shape()
    clip_cfg.MODEL.BACKBONE.NAME = "build_clip_vit_stages_backbone"
    shapes = build_backbone(clip_cfg).output_shape()
    assert {name: spec for name, spec in shapes.items() if name != "clip"} == resnet


def test_strides_of_deeplab_with_both_dilations():
    strides = stage_strides(["res5", "res4"], res4_dilation=2, res5_dilation=4)
    assert strides == {"res4": 8, "res5": 8}


@pytest.mark.parametrize("names", [[], ["res1"], ["p2"]])
def test_unknown_stages_are_refused(names):
    with pytest.raises(ValueError, match="MODEL.RESNETS.OUT_FEATURES"):
        stage_strides(names)


@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_output_shape_is_true(make_tower, patch_size):
    stages = ClipViTStages(
        backbone=ClipViT(tower=make_tower(patch_size=patch_size), tap_blocks=[1, 3]),
        strides={"res2": 4, "res4": 16},
        channels={"res2": 8, "res4": 24},
        norm="LN",
    )
    features = stages(torch.randn(1, 3, 50, 71))
    assert features["res2"].shape == (1, 8, 13, 18)
    assert features["res4"].shape == (1, 24, 4, 5)
    assert list(features) == list(stages.output_shape())


def test_a_stage_is_a_projection_of_its_block(make_tower):
    tower = make_tower(patch_size=16)
    stages = ClipViTStages(
        backbone=ClipViT(tower=tower, tap_blocks=[2]),
        strides={"res4": 16},
        channels={"res4": 24},
        norm="",
    )
    images = torch.randn(1, 3, 64, 64)
    expected = stages.laterals[0](tower.forward_dense(images, [2]).blocks[0])
    torch.testing.assert_close(stages(images)["res4"], expected, rtol=0, atol=0)


def test_another_number_of_blocks_is_refused(make_tower):
    vit = ClipViT(tower=make_tower(), tap_blocks=[3])
    strides, channels = {"res4": 16, "res5": 32}, {"res4": 8, "res5": 8}
    with pytest.raises(ValueError, match="TAP_BLOCKS"):
        ClipViTStages(backbone=vit, strides=strides, channels=channels, norm="LN")


def test_a_trained_block_that_no_stage_reads_is_refused(make_tower):
    vit = ClipViT(tower=make_tower(), tap_blocks=[1], trainable_blocks=1)
    with pytest.raises(ValueError, match="MODEL.CLIP.TRAINABLE_BLOCKS"):
        ClipViTStages(backbone=vit, strides={"res4": 16}, channels={"res4": 8}, norm="LN")
