"""Wrong combinations are refused in a sentence that names the key."""

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_backbone

from clipself_d2.backbones import compatibility
from clipself_d2.config import add_clipself_config

LEVELS = {f"p{n}": ShapeSpec(channels=256, stride=2**n) for n in range(2, 7)}
CLIP = {"clip": ShapeSpec(channels=16, stride=14)}
FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def stock(name: str, *overrides: object) -> CfgNode:
    """A config of the model zoo with the embedded CLIP's pixel statistics."""
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_clip_vit_fpn_backbone", "MODEL.DEVICE", "cpu"]
        + ["MODEL.CLIP.NAME", "ViT-Ti-8-emoji", "INPUT.FORMAT", "RGB"]
        + ["MODEL.PIXEL_MEAN", [122.8, 116.7, 104.1], "MODEL.PIXEL_STD", [68.5, 66.6, 70.3]]
    )
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.mark.parametrize("name", [FASTER, PANOPTIC])
def test_stock_detectors_fit_the_levels(name):
    compatibility.check_detector(stock(name), LEVELS)


def test_one_stage_detectors_and_semantic_heads_are_told_apart():
    assert compatibility.is_dense_detector(stock(RETINANET))
    assert not compatibility.is_dense_detector(stock(PANOPTIC))
    assert compatibility.has_semantic_head(stock(PANOPTIC))
    assert not compatibility.has_semantic_head(stock(FASTER))


def test_meta_architectures_of_others_are_left_alone():
    compatibility.check_detector(stock(FASTER, "MODEL.META_ARCHITECTURE", "TheirOwn"), {})


@pytest.mark.parametrize(
    ("name", "overrides", "key"),
    [
        (
            FASTER,
            ["MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p7"]],
            "MODEL.RPN.IN_FEATURES",
        ),
        (FASTER, ["MODEL.ROI_HEADS.IN_FEATURES", ["res4"]], "MODEL.ROI_HEADS.IN_FEATURES"),
        (FASTER, ["MODEL.ROI_HEADS.IN_FEATURES", []], "MODEL.ROI_HEADS.IN_FEATURES"),
        (
            PANOPTIC,
            ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p1", "p2"]],
            "MODEL.SEM_SEG_HEAD.IN_FEATURES",
        ),
        (RETINANET, [], "MODEL.RETINANET.IN_FEATURES"),
        (FASTER, ["MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]]], "MODEL.ANCHOR_GENERATOR.SIZES"),
        (FASTER, ["MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"]], "powers of two, each twice"),
        (FASTER, ["MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p2"]], "MODEL.ROI_HEADS.IN_FEATURES"),
        (FASTER, ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"], "MODEL.RESNETS.RES2_OUT_CHANNELS"),
    ],
)
def test_a_detector_that_does_not_fit_is_refused(name, overrides, key):
    with pytest.raises(ValueError, match=key) as refusal:
        compatibility.check_detector(stock(name, *overrides), LEVELS)
    assert "\n" not in str(refusal.value)


def test_a_stride_that_is_no_power_of_two_is_refused_for_pooling():
    cfg = stock(FASTER, "MODEL.ROI_HEADS.IN_FEATURES", ["clip"])
    with pytest.raises(ValueError, match="strides of \\[14\\] px"):
        compatibility.check_detector(cfg, {**LEVELS, **CLIP})


def test_proposals_from_a_file_need_no_features_of_the_rpn():
    cfg = stock(FASTER, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    cfg.MODEL.RPN.IN_FEATURES = ["nothing"]
    compatibility.check_detector(cfg, LEVELS)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["MODEL.CLIP_FPN.STRIDES", [8, 16]], "MODEL.RPN.IN_FEATURES"),
        (["MODEL.BACKBONE.NAME", "build_clip_vit_backbone"], "MODEL.RPN.IN_FEATURES"),
        (["MODEL.BACKBONE.NAME", "build_clip_vit_stages_backbone"], "MODEL.RPN.IN_FEATURES"),
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT"),
        (["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]], "MODEL.PIXEL_MEAN"),
    ],
)
def test_the_builders_refuse_what_does_not_fit(overrides, key):
    with pytest.raises(ValueError, match=key):
        build_backbone(stock(FASTER, *overrides))


def test_a_mean_without_an_order_passes():
    cfg = stock(FASTER)
    compatibility.refuse_bgr(cfg, name="siglip", pixel_mean=(127.5, 127.5, 127.5))
    cfg.MODEL.PIXEL_MEAN = [127.5, 127.5, 127.5]
    compatibility.refuse_bgr(cfg, name="siglip", pixel_mean=(127.5, 127.5, 127.5))


def test_sync_bn_trains_in_one_process_on_a_cpu_only(monkeypatch):
    cfg = stock(FASTER, "MODEL.FPN.NORM", "SyncBN")
    compatibility.refuse_sync_bn_on_cpus(cfg)
    monkeypatch.setattr(compatibility.comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="MODEL.FPN.NORM"):
        compatibility.refuse_sync_bn_on_cpus(cfg)


def test_images_must_fit_in_the_square():
    cfg = stock(FASTER, "MODEL.CLIP_FPN.SQUARE_SIZE", 1024)
    with pytest.raises(ValueError, match="INPUT.MAX_SIZE_TRAIN"):
        compatibility.check_square(cfg)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 1024
    compatibility.check_square(cfg)
