"""The RPN head with norms."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import StandardRPNHead, build_proposal_generator
from detectron2.modeling.proposal_generator.rpn import build_rpn_head
from torch import nn

from clipself_d2.config import add_clipself_config
from clipself_d2.detection.rpn import JointRPN, NormRPNHead, blend, share_pyramid, thing_share
from clipself_d2.engine.trainer import Trainer

SHAPES = [ShapeSpec(channels=32, stride=stride) for stride in (4, 8)]


@pytest.fixture
def cfg() -> CfgNode:
    config = get_cfg()
    add_clipself_config(config)
    config.MODEL.RPN.HEAD_NAME = "NormRPNHead"
    config.MODEL.RPN.CONV_DIMS = [-1, -1]
    config.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    return config


def test_boxes_decoded_at_once_are_detectron2s(cfg: CfgNode) -> None:
    shapes = {f"p{level}": shape for level, shape in enumerate(SHAPES, start=2)}
    cfg.MODEL.RPN.IN_FEATURES = list(shapes)
    found = []
    for name in ("RPN", "JointRPN"):
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = name
        torch.manual_seed(0)
        network = build_proposal_generator(cfg, shapes)
        anchors = network.anchor_generator([torch.zeros(1, 32, 6, 5), torch.zeros(1, 32, 3, 3)])
        deltas = [torch.randn(2, len(boxes), 4) for boxes in anchors]
        found.append(network._decode_proposals(anchors, deltas))
    assert type(network) is JointRPN
    assert [level.shape for level in found[1]] == [(2, 6 * 5 * 3, 4), (2, 3 * 3 * 3, 4)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


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


NAME, WEIGHT = "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.OPEN_VOCAB.CLIP_OBJECTNESS"


def test_the_share_of_things_by_hand():
    # Two cells: one looks like the first thing, one like the background.
    text_KD = torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
    dense = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T[None, :, None]
    logits = 100 * torch.tensor([[1.0, 0.96, 0.0], [0.0, 0.28, 1.0]])
    expected = logits.softmax(1)[:, :2].sum(1).view(1, 1, 1, 2)
    torch.testing.assert_close(thing_share(dense, text_KD, 2), expected)


def test_levels_are_averages_and_interpolations():
    share = torch.tensor([[0.0, 0.4], [0.8, 0.8]])[None, None]
    fine, same, coarse = share_pyramid(share, [(4, 4), (2, 2), (1, 1)])
    assert torch.equal(same, share)
    assert coarse.item() == pytest.approx(0.5)
    torch.testing.assert_close(fine[0, 0, 0], torch.tensor([0.0, 0.1, 0.3, 0.4]))


def test_the_blend_by_hand():
    # Two cells with two anchors each.
    logits = torch.tensor([[0.0, 100.0, -100.0, 0.0]])
    share = torch.tensor([[[[1.0, 0.2]]]])
    mixed = blend(logits, share, 0.5).sigmoid()
    torch.testing.assert_close(mixed, torch.tensor([[0.75, 1.0, 0.1, 0.35]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(blend(logits[:, :1], share[..., :1], 0.0), logits[:, :1])
    alone = blend(logits, share, 1.0).sigmoid()
    torch.testing.assert_close(alone, torch.tensor([[1.0, 1.0, 0.2, 0.2]]), atol=1e-5, rtol=0)


def test_weight_0_is_the_plain_network_and_another_is_not(emoji_cfg) -> None:
    picture = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(3))
    found = {}
    for case in (("RPN", 0.5), ("BlendedRPN", 0.0), ("BlendedRPN", 0.5)):
        torch.manual_seed(0)
        model = Trainer.build_model(
            emoji_cfg("fvit_untouched", NAME, case[0], WEIGHT, case[1])
        ).eval()
        with torch.no_grad():
            images = model.preprocess_image([{"image": picture.byte()}])
            features = model.backbone(images.tensor)
            (proposals,), _ = model.proposal_generator(images, features)
        found[case] = (proposals.proposal_boxes.tensor, proposals.objectness_logits)
    plain, off, on = found.values()
    assert all(torch.equal(a, b) for a, b in zip(plain, off, strict=True))
    assert on[1].shape != plain[1].shape or not torch.allclose(on[1], plain[1])
