"""Anchors that are held: Detectron2's, made again where maps have other sizes."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from torch import Tensor

from clipself_d2.detection.anchors import HeldAnchorGenerator

SHAPES = [ShapeSpec(channels=8, stride=stride) for stride in (4, 8)]


@pytest.fixture
def generators() -> tuple[HeldAnchorGenerator, DefaultAnchorGenerator]:
    cfg, made = get_cfg(), []
    for name in ("HeldAnchorGenerator", "DefaultAnchorGenerator"):
        cfg.MODEL.ANCHOR_GENERATOR.NAME = name
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 48], [64, 96]]
        made.append(build_anchor_generator(cfg, SHAPES))
    return tuple(made)


def levels(height: int, width: int) -> list[Tensor]:
    return [torch.zeros(2, 8, height // stride, width // stride) for stride in (4, 8)]


def test_anchors_are_detectron2s_at_every_size(generators) -> None:
    held, plain = generators
    assert held.num_anchors == plain.num_anchors
    for size in ((32, 48), (48, 32), (32, 48)):
        pairs = zip(held(levels(*size)), plain(levels(*size)), strict=True)
        assert all(torch.equal(ours.tensor, theirs.tensor) for ours, theirs in pairs)


def test_they_are_made_once_for_a_size(generators, monkeypatch) -> None:
    held, _ = generators
    calls = []
    make = DefaultAnchorGenerator.forward
    monkeypatch.setattr(
        DefaultAnchorGenerator, "forward", lambda *args: calls.append(1) or make(*args)
    )
    for size in ((32, 48), (32, 48), (48, 32)):
        held(levels(*size))
    assert len(calls) == 2


def test_those_of_inference_mode_do_not_come_into_training(generators) -> None:
    held, _ = generators
    with torch.inference_mode():
        held(levels(32, 48))
    weight = torch.ones(4, requires_grad=True)
    (held(levels(32, 48))[0].tensor * weight).sum().backward()
    assert weight.grad is not None


def test_a_copy_and_an_export_have_their_own(generators) -> None:
    held, plain = generators
    held(levels(32, 48))

    class Boxes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = copy.deepcopy(held)

        def forward(self, level: Tensor) -> Tensor:
            return self.generator([level, level[..., ::2, ::2]])[0].tensor

    traced = torch.jit.trace(Boxes(), (levels(32, 48)[0],), check_trace=False)
    wanted = plain(levels(64, 64))[0].tensor
    assert torch.equal(traced(levels(64, 64)[0]), wanted)
