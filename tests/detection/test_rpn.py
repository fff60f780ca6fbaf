"""The RPN head with norms."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import StandardRPNHead
from detectron2.modeling.proposal_generator.rpn import build_rpn_head
from torch import nn

from clipself_d2.config import add_clipself_config
from clipself_d2.detection.rpn import NormRPNHead

SHAPES = [ShapeSpec(channels=32, stride=stride) for stride in (4, 8)]


@pytest.fixture
def cfg() -> CfgNode:
    config = get_cfg()
    add_clipself_config(config)
    config.MODEL.RPN.HEAD_NAME = "NormRPNHead"
    config.MODEL.RPN.CONV_DIMS = [-1, -1]
    config.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    return config


@pytest.mark.parametrize("conv_dims", [[-1], [-1, 64]])
def test_key_puts_a_norm_and_no_bias_into_every_convolution(cfg: CfgNode, conv_dims) -> None:
    cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.RPN.CONV_DIMS = conv_dims
    head = build_rpn_head(cfg, SHAPES)
    assert isinstance(head, NormRPNHead)
    norms = [part for part in head.modules() if isinstance(part, nn.GroupNorm)]
    assert [norm.num_channels for norm in norms] == [32, 64][: len(conv_dims)]
    names = dict(head.named_parameters())
    assert not any(
        name.startswith("conv") and ".bias" in name and ".norm" not in name for name in names
    )
    assert {"objectness_logits.bias", "anchor_deltas.bias"} <= set(names)


def test_norm_goes_between_convolution_and_relu(cfg: CfgNode) -> None:
    cfg.MODEL.FPN.NORM = "GN"
    head = build_rpn_head(cfg, SHAPES)
    level = torch.randn(2, 32, 6, 5)
    hidden = level
    for conv in head.conv:
        plain = torch.nn.functional.conv2d(hidden, conv.weight, padding=1)
        hidden = conv.norm(plain).relu()
    logits, deltas = head([level])
    torch.testing.assert_close(logits[0], head.objectness_logits(hidden))
    torch.testing.assert_close(deltas[0], head.anchor_deltas(hidden))


def test_without_a_norm_it_is_detectron2s_head(cfg: CfgNode) -> None:
    torch.manual_seed(0)
    ours = build_rpn_head(cfg, SHAPES)
    cfg.MODEL.RPN.HEAD_NAME = "StandardRPNHead"
    torch.manual_seed(0)
    theirs = build_rpn_head(cfg, SHAPES)
    assert type(theirs) is StandardRPNHead
    ours.load_state_dict(theirs.state_dict(), strict=True)
    level = torch.randn(1, 32, 4, 4)
    torch.testing.assert_close(ours([level]), theirs([level]), rtol=0, atol=0)
