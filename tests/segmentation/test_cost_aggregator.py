"""The aggregator on the numbers of the published code, and what any list length must keep."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clipself_d2.segmentation.cost_aggregator import (
    AggregatorSizes,
    CostAggregator,
    GuidedUpsampling,
)
from clipself_d2.segmentation.published_checkpoints import rename_aggregator

GOLDEN = Path(__file__).parents[1] / "golden" / "catseg"
SIZES = {
    "dim": 32,
    "window_size": 4,
    "list_length": 12,
    "appearance_dim": 12,
    "text_dim": 16,
    "decoder_dims": (32, 16),
    "guide_dims": (8, 4),
}


def load(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        numbers = {key: arrays[key] for key in arrays.files if arrays[key].dtype.kind in "fi"}
    return {key: torch.from_numpy(np.asarray(value)) for key, value in numbers.items()}


@pytest.fixture(scope="module")
def aggregator() -> CostAggregator:
    module = CostAggregator(embed_dim=24, guide_dims=(20, 10), sizes=AggregatorSizes(**SIZES))
    published = {
        key.removeprefix("param/"): value
        for key, value in load("aggregator_T5").items()
        if key.startswith("param/")
    }
    module.load_state_dict(rename_aggregator(published))
    return module.eval()


def run(aggregator: CostAggregator, golden: dict[str, Tensor], image: int, **options) -> Tensor:
    rows = slice(image, image + 1)
    guides = tuple(golden[f"guid{level}"][rows] for level in range(3))
    text = golden["text_feats"][image, :, 0]
    with torch.no_grad():
        return aggregator(golden["img_feats"][rows], guides, text, **options)[0]


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("num_classes", [5, 12, 17])
def test_logits_are_the_published_ones(aggregator, num_classes, image):
    golden = load(f"aggregator_T{num_classes}")
    logits = run(aggregator, golden, image)
    torch.testing.assert_close(logits, golden["logits"][image], atol=1e-5, rtol=0)


@pytest.mark.parametrize("image", [0, 1])
def test_logits_without_pooling_are_the_published_ones(aggregator, image):
    expected = load("aggregator_T17_pool1")["logits"][image]
    logits = run(aggregator, load("aggregator_T17"), image, pooling=1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_the_order_of_classes_does_not_matter(aggregator):
    golden = load("aggregator_T12")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = {**golden, "text_feats": golden["text_feats"][:, order]}
    torch.testing.assert_close(
        run(aggregator, shuffled, 0), run(aggregator, golden, 0)[order], atol=1e-5, rtol=0
    )


def test_images_of_a_batch_do_not_mix(aggregator):
    golden = load("aggregator_T17")
    text = golden["text_feats"][0, :, 0]
    guides = tuple(golden[f"guid{level}"] for level in range(3))
    with torch.no_grad():
        both = aggregator(golden["img_feats"], guides, text)
    torch.testing.assert_close(both[0], run(aggregator, golden, 0), atol=1e-5, rtol=0)


def test_a_shortlist_as_long_as_the_vocabulary_is_exact(aggregator):
    golden = load("aggregator_T5")
    assert torch.equal(run(aggregator, golden, 0, shortlist=5), run(aggregator, golden, 0))
    short = run(aggregator, golden, 0, shortlist=2)
    assert (short.flatten(1) == -100).all(dim=1).sum() == 3


def test_the_published_size_is_met():
    with torch.device("meta"):
        module = CostAggregator(embed_dim=512, guide_dims=(256, 128))
    assert round(sum(p.numel() for p in module.parameters()) / 1e6, 2) == 2.31


def test_each_class_is_decoded_by_itself_beside_its_image_guide():
    torch.manual_seed(0)
    module = GuidedUpsampling(in_dim=12, out_dim=16, guide_dim=4)
    cost, guide = torch.randn(2, 3, 12, 5, 7), torch.randn(2, 4, 10, 14)
    whole = module(cost, guide)
    assert whole.shape == (2, 3, 16, 10, 14)
    torch.testing.assert_close(module(cost[1:, 2:], guide[1:])[0, 0], whole[1, 2])
    assert not torch.allclose(module(cost[1:, 2:], guide[:1])[0, 0], whole[1, 2])
