"""Parts of a built detector that do not fit are refused in a sentence that names the key."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from clipself_d2.backbones import ClipViT
from clipself_d2.backbones.model_check import check_model


class Levels(nn.Module):
    """Shapes of p2 to p7 and of the dense map, with a tower inside."""

    def __init__(self, clip: ClipViT) -> None:
        super().__init__()
        self.clip = clip

    def output_shape(self) -> dict[str, ShapeSpec]:
        strides = {f"p{n}": 2**n for n in range(2, 8)} | {"clip": 8}
        return {name: ShapeSpec(channels=32, stride=stride) for name, stride in strides.items()}


@pytest.fixture
def detector(emoji_cfg):
    """Function from a meta-architecture's config to a detector of random weights."""

    def make(name: str, *overrides: object) -> nn.Module:
        cfg = emoji_cfg(name, *overrides)
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        model.backbone = Levels(model.backbone)
        return model

    return make


def test_detectors_that_fit_pass(detector):
    check_model(detector("fvit_untouched"))
    check_model(detector("retinanet"))
    check_model(detector("fcos"))
    check_model(nn.Identity())


def refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        check_model(model)
    assert "\n" not in str(refusal.value)


def test_two_stage_detectors_name_the_key(detector):
    model = detector("fvit_untouched")
    heads, proposals = model.roi_heads, model.proposal_generator
    names, heads.box_in_features = heads.box_in_features, ["p2", "p3", "p4", "res5"]
    refused(model, r"model\.roi_heads\.box_in_features is .* and no res5")
    heads.box_in_features = names[:1]
    refused(model, r"model\.roi_heads\.box_pooler\.scales")
    heads.box_in_features = names
    names, proposals.in_features = proposals.in_features, ["p2", "p3", "p4", "p5", "p8"]
    refused(model, r"model\.proposal_generator\.in_features is .* and no p8")
    proposals.in_features = names
    proposals.anchor_generator.strides = [8, 16, 32, 64, 128]
    refused(model, r"model\.proposal_generator\.anchor_generator\.strides")


def test_one_stage_detectors_name_the_key(detector):
    model = detector("retinanet")
    names = model.head_in_features
    model.head_in_features = [*names[:-1], "p9"]
    refused(model, r"model\.head_in_features is .* and no p9")
    model.head_in_features = ["clip", *names]
    refused(model, "do not ascend")
    model.head_in_features = names
    model.anchor_generator.strides = [1] * len(names)
    refused(model, r"model\.anchor_generator\.strides")


def test_bgr_is_refused(detector):
    model = detector("fvit_untouched")
    model.input_format = "BGR"
    refused(model, r"model\.input_format is BGR")
    model.input_format = "RGB"
    model.pixel_mean = model.pixel_mean.flip(0)
    refused(model, r"model\.pixel_mean is \[.*, in the order BGR")
