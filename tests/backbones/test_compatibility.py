"""Wrong combinations are refused in a sentence that names the key; docs/plug_in.md quotes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from torch import nn

from clipself_d2.backbones import ClipViT, compatibility
from clipself_d2.backbones.compatibility import check_model

PAGE = Path(__file__).parents[2] / "docs" / "plug_in.md"
FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
SEMANTIC = "Misc/semantic_R_50_FPN_1x.yaml"
SIZES = "MODEL.ANCHOR_GENERATOR.SIZES"
BACKBONE = "MODEL.BACKBONE.NAME"


def stock(name: str, *overrides: object) -> CfgNode:
    """A config of the model zoo with the embedded CLIP, its pixels, and thin heads."""
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(name))
    cfg.merge_from_list(
        [BACKBONE, "build_clip_vit_fpn_backbone", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
        + ["MODEL.CLIP.NAME", "ViT-Ti-8-emoji", "INPUT.FORMAT", "RGB"]
        + ["MODEL.PIXEL_MEAN", [122.771, 116.746, 104.094], "MODEL.PIXEL_STD", [68.5, 66.6, 70.3]]
        + ["MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32]
        + ["MODEL.RESNETS.WIDTH_PER_GROUP", 8]
    )
    cfg.merge_from_list(list(overrides))
    return cfg


def check(cfg: CfgNode) -> None:
    check_model(build_model(cfg), cfg)


@pytest.mark.parametrize(
    ("name", "builder"),
    [
        (FASTER, "build_clip_vit_fpn_backbone"),
        (FASTER, "build_clip_vit_simple_fpn_backbone"),
        (C4, "build_clip_vit_stages_backbone"),
        (PANOPTIC, "build_semantic_clip_vit_fpn_backbone"),
        (SEMANTIC, "build_semantic_clip_vit_simple_fpn_backbone"),
        (RETINANET, "build_retinanet_clip_vit_fpn_backbone"),
        (RETINANET, "build_retinanet_clip_vit_simple_fpn_backbone"),
    ],
)
def test_stock_detectors_fit_the_backbone_of_their_kind(name: str, builder: str) -> None:
    check(stock(name, BACKBONE, builder))


def test_what_is_no_detector_is_left_alone() -> None:
    check_model(nn.Identity(), stock(FASTER, "MODEL.CLIP_FPN.SQUARE_SIZE", 1))


def test_proposals_from_a_file_need_no_features_of_the_rpn() -> None:
    cfg = stock(FASTER, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    cfg.MODEL.RPN.IN_FEATURES = ["nothing"]
    check(cfg)


def refused(action: Callable[[], None], words: str) -> str:
    with pytest.raises(ValueError, match=words) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        (FASTER, ["MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p7"]], "feature 'p7'"),
        (C4, [], "feature 'res4'"),
        (RETINANET, [], "feature 'p7'.*build_retinanet_clip_vit_fpn_backbone"),
        (
            RETINANET,
            ["MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5", "p6"], SIZES, [[32]]],
            "nothing reads p2 .*MODEL.CLIP_FPN.STRIDES",
        ),
        (PANOPTIC, [], "multiples of 8 px.*build_semantic_clip_vit_"),
        (
            C4,
            [BACKBONE, "build_clip_vit_backbone", "MODEL.RPN.IN_FEATURES", ["clip"]]
            + ["MODEL.ROI_HEADS.IN_FEATURES", ["clip"], "MODEL.RESNETS.RES2_OUT_CHANNELS", 16],
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
        ),
        (FASTER, ["INPUT.FORMAT", "BGR"], "INPUT.FORMAT is BGR"),
        (FASTER, ["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]], "MODEL.PIXEL_MEAN is"),
        (FASTER, ["MODEL.CLIP_FPN.SQUARE_SIZE", 1024], "lower INPUT.MAX_SIZE_TRAIN"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_as_the_page_says(name, overrides, words) -> None:
    sentence = refused(lambda: check(stock(name, *overrides)), words)
    assert sentence in PAGE.read_text(encoding="utf-8")


def test_what_detectron2_would_leave_out_in_silence_is_refused() -> None:
    cfg = stock(SEMANTIC, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p1", "p2"])
    refused(lambda: check(cfg), r"MODEL.SEM_SEG_HEAD.IN_FEATURES is \['p1', 'p2'\].* and no p1")


def test_the_vit_alone_says_what_it_has() -> None:
    refused(lambda: check(stock(FASTER, BACKBONE, "build_clip_vit_backbone")), "feature 'p2'")


def test_a_square_that_is_whole_serves_a_semantic_head() -> None:
    sizes = ["INPUT.MAX_SIZE_TRAIN", 640, "INPUT.MAX_SIZE_TEST", 640]
    check(stock(SEMANTIC, "MODEL.CLIP_FPN.SQUARE_SIZE", 640, *sizes))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["INPUT.MAX_SIZE_TEST", 65], "INPUT.MAX_SIZE_TEST"),
        (["INPUT.MIN_SIZE_TEST", 0], "INPUT.MAX_SIZE_TEST"),
        (["INPUT.LSJ_SIZE", 65], "INPUT.LSJ_SIZE"),
        (["INPUT.LSJ_SIZE", 0, "INPUT.MAX_SIZE_TRAIN", 65], "INPUT.MAX_SIZE_TRAIN"),
    ],
)
def test_images_larger_than_the_square_are_refused_with_the_key(overrides, key) -> None:
    cfg = stock(FASTER, "MODEL.CLIP_FPN.SQUARE_SIZE", 64, "INPUT.LSJ_SIZE", 64)
    cfg.INPUT.MAX_SIZE_TEST = 64
    model = build_model(cfg)
    check_model(model, cfg)
    cfg.merge_from_list(overrides)
    refused(lambda: check_model(model, cfg), f"MODEL.CLIP_FPN.SQUARE_SIZE 64; lower {key}")


@pytest.mark.parametrize("part", ["FPN", "ROI_BOX_HEAD"])
def test_sync_bn_trains_in_one_process_on_a_cpu_only(monkeypatch, part: str) -> None:
    cfg = stock(FASTER, "MODEL.ROI_BOX_HEAD.NUM_CONV", 1, f"MODEL.{part}.NORM", "SyncBN")
    model = build_model(cfg)
    check_model(model, cfg)
    monkeypatch.setattr(compatibility.comm, "get_world_size", lambda: 2)
    refused(lambda: check_model(model, cfg), "naiveSyncBN")


class Levels(nn.Module):
    """Shapes of p2 to p7 and of the dense map, with a tower inside."""

    def __init__(self, clip: ClipViT) -> None:
        super().__init__()
        self.clip = clip

    def output_shape(self) -> dict[str, ShapeSpec]:
        strides = {f"p{n}": 2**n for n in range(2, 8)} | {"clip": 8}
        return {name: ShapeSpec(channels=32, stride=stride) for name, stride in strides.items()}


@pytest.fixture
def detector(emoji_cfg) -> Callable[[str], nn.Module]:
    """Function from a recipe to a detector of random weights, as LazyConfig might have built it."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        model = build_model(emoji_cfg(name)).eval()
        model.backbone = Levels(model.backbone)
        return model

    return make


@pytest.mark.parametrize("name", ["fvit_untouched", "retinanet", "fcos", "rpn"])
def test_lazy_detectors_that_fit_pass(detector, name: str) -> None:
    check_model(detector(name))


def test_two_stage_detectors_name_the_field(detector) -> None:
    model = detector("fvit_untouched")
    heads, proposals = model.roi_heads, model.proposal_generator
    names, heads.box_in_features = heads.box_in_features, ["p2", "p3", "p4", "res5"]
    refused(lambda: check_model(model), r"model\.roi_heads\.box_in_features\) is .* and no res5")
    heads.box_in_features = names[:1]
    refused(lambda: check_model(model), r"model\.roi_heads\.box_pooler\.scales")
    heads.box_in_features = names
    names, proposals.in_features = proposals.in_features, ["p2", "p3", "p4", "p5", "p8"]
    refused(lambda: check_model(model), r"model\.proposal_generator\.in_features\) is .* and no p8")
    proposals.in_features = names
    proposals.anchor_generator.strides = [8, 16, 32, 64, 128]
    refused(lambda: check_model(model), r"anchor generator.*model\.proposal_generator")


def test_one_stage_detectors_name_the_field(detector) -> None:
    model = detector("retinanet")
    names = model.head_in_features
    model.head_in_features = [*names[:-1], "p9"]
    refused(lambda: check_model(model), r"model\.head_in_features\) is .* and no p9")
    model.head_in_features = ["clip", *names]
    refused(lambda: check_model(model), "do not ascend")
    model.head_in_features = names
    model.anchor_generator.strides = [1] * len(names)
    refused(lambda: check_model(model), r"anchor generator.*model\.head_in_features")


def test_bgr_is_refused_by_the_model_alone(detector) -> None:
    model = detector("fvit_untouched")
    model.input_format = "BGR"
    refused(lambda: check_model(model), r"model\.input_format is BGR")
    model.input_format = "RGB"
    model.pixel_mean = model.pixel_mean.flip(0)
    refused(lambda: check_model(model), r"model\.pixel_mean is \[.*, in the order BGR")
