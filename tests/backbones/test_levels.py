"""Levels of the pyramids follow the detector that reads them."""

import pytest
import torch
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from clipself_d2.backbones import ClipViT, ClipViTPyramid
from clipself_d2.backbones.levels import level_name, plan_levels


def test_levels_are_named_by_their_strides():
    assert [level_name(stride) for stride in (1, 4, 64)] == ["p0", "p2", "p6"]


def test_two_stage_detectors_get_the_strides_of_the_config(clip_cfg):
    assert plan_levels(clip_cfg, one_stage=False) == ((4, 8, 16, 32), None)


def test_one_stage_detectors_get_p3_to_p7_and_no_idle_level(clip_cfg):
    strides, top_block = plan_levels(clip_cfg, one_stage=True)
    assert strides == (8, 16, 32)
    assert isinstance(top_block, LastLevelP6P7)
    assert top_block.in_feature == "p5"


def test_one_stage_levels_follow_the_strides_of_the_config(clip_cfg):
    clip_cfg.MODEL.CLIP_FPN.STRIDES = [16, 32]
    assert plan_levels(clip_cfg, one_stage=True)[0] == (16, 32)
    clip_cfg.MODEL.CLIP_FPN.STRIDES = [2, 4]
    with pytest.raises(ValueError, match=r"MODEL\.CLIP_FPN\.STRIDES"):
        plan_levels(clip_cfg, one_stage=True)


@pytest.mark.parametrize(("patch_size", "divisibility"), [(8, 32), (16, 32), (14, 224)])
def test_padding_serves_the_patch_and_the_last_stride(make_tower, patch_size, divisibility):
    vit = ClipViT(tower=make_tower(patch_size=patch_size), tap_blocks=[1, 3])
    pyramid = ClipViTPyramid(backbone=vit, strides=[16, 32], norm="LN", pad_to_stride=True)
    assert pyramid.size_divisibility == divisibility
    assert pyramid.padding_constraints == {"size_divisibility": divisibility, "square_size": 0}


def test_levels_above_read_the_level_they_name(make_tower):
    vit = ClipViT(tower=make_tower(patch_size=8), tap_blocks=[1, 3])
    top = LastLevelP6P7(32, 32, "p4")
    pyramid = ClipViTPyramid(
        backbone=vit, strides=[8, 16], out_channels=32, norm="LN", top_block=top
    )
    images = torch.randn(1, 3, 64, 96)
    features = pyramid(images)
    assert list(features) == list(pyramid.output_shape()) == ["p3", "p4", "p5", "p6", "clip"]
    expected = top(features["p4"])
    torch.testing.assert_close(features["p5"], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(features["p6"], expected[1], rtol=0, atol=0)
    assert pyramid.output_shape()["p6"].stride == 64
