"""Maps of the pixel decoder: sizes, order, and what each level sees."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from clipself_d2.segmentation.pixel_decoder import PixelDecoder

SHAPES = {f"res{n}": ShapeSpec(channels=4 * n, stride=2**n) for n in (2, 3, 4, 5)}


def features(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        + 0 * torch.randn(1, generator=generator)
        for name, shape in SHAPES.items()
    }


def make(layers: int) -> PixelDecoder:
    torch.manual_seed(0)
    return PixelDecoder(
        input_shape=SHAPES, in_features=list(SHAPES), channels=32, attention_layers=layers
    ).eval()


@pytest.mark.parametrize("layers", [0, 2])
def test_maps_go_from_coarse_to_fine(layers: int) -> None:
    masks, levels = make(layers)(features())
    assert masks.shape == (2, 32, 16, 24)
    assert [tuple(level.shape[-2:]) for level in levels] == [(2, 3), (4, 6), (8, 12)]


@pytest.mark.parametrize(("layers", "reached"), [(0, False), (2, True)])
def test_only_attention_carries_fine_maps_into_the_coarsest(layers: int, reached: bool) -> None:
    decoder, inputs = make(layers), features()
    before = decoder(inputs)[1][0]
    inputs["res3"] = inputs["res3"] + torch.randn_like(inputs["res3"])
    after = decoder(inputs)[1][0]
    assert torch.equal(before, after) is not reached


def test_fewer_than_four_features_are_refused() -> None:
    with pytest.raises(ValueError, match="takes four"):
        PixelDecoder(input_shape=SHAPES, in_features=["res2", "res3", "res4"])
