"""Levels of the pyramids follow the detector that reads them."""

import pytest
import torch
from detectron2.model_zoo import get_config_file
from detectron2.modeling.backbone.fpn import LastLevelP6P7

from clipself_d2.backbones import ClipViT, ClipViTPyramid
from clipself_d2.backbones.levels import level_name, plan_levels

RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def test_levels_are_named_by_their_strides():
    assert [level_name(stride) for stride in (1, 4, 64)] == ["p0", "p2", "p6"]


def test_two_stage_detectors_get_the_strides_of_the_config(clip_cfg):
    plan = plan_levels(clip_cfg)
    assert (plan.strides, plan.top_block, plan.divisor) == ((4, 8, 16, 32), None, 1)


def test_retinanet_gets_p3_to_p7_and_no_idle_level(clip_cfg):
    clip_cfg.merge_from_file(get_config_file(RETINANET))
    plan = plan_levels(clip_cfg)
    assert plan.strides == (8, 16, 32)
    assert isinstance(plan.top_block, LastLevelP6P7)
    assert plan.top_block.in_feature == "p5"


def test_a_one_stage_detector_up_to_p6_gets_it_by_pooling(clip_cfg):
    clip_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    clip_cfg.MODEL.RETINANET.IN_FEATURES = ["p4", "p5", "p6"]
    plan = plan_levels(clip_cfg)
    assert (plan.strides, plan.top_block) == ((16, 32), None)


def test_names_that_are_no_levels_are_left_to_the_check(clip_cfg):
    clip_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    clip_cfg.MODEL.RETINANET.IN_FEATURES = ["clip"]
    assert plan_levels(clip_cfg).strides == (4, 8, 16, 32)


def test_semantic_heads_need_sides_of_whole_last_strides(clip_cfg):
    clip_cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    assert plan_levels(clip_cfg).divisor == 32


@pytest.mark.parametrize(("patch_size", "divisibility"), [(8, 32), (16, 32), (14, 224)])
def test_padding_serves_the_patch_and_the_divisor(make_tower, patch_size, divisibility):
    vit = ClipViT(tower=make_tower(patch_size=patch_size), tap_blocks=[1, 3])
    pyramid = ClipViTPyramid(backbone=vit, strides=[16, 32], norm="LN", divisor=32)
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
