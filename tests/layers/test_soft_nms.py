"""Soft-NMS against the published code, and its limits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from clipself_d2.layers.soft_nms import batched_soft_nms

GOLDEN = Path(__file__).parents[1] / "golden" / "regionclip" / "soft_nms.npz"


@pytest.fixture
def golden():
    with np.load(GOLDEN) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


@pytest.mark.parametrize("method", ["gaussian", "linear", "hard"])
def test_boxes_and_scores_are_those_of_the_published_code(golden, method) -> None:
    kept, scores = batched_soft_nms(
        golden["boxes"], golden["scores"], golden["classes"], method=method
    )
    assert kept.tolist() == golden[f"keep_{method}"].tolist()
    torch.testing.assert_close(scores, golden[f"out_scores_{method}"], rtol=1e-5, atol=1e-6)


def test_hard_method_is_ordinary_nms(golden) -> None:
    parts = golden["boxes"], golden["scores"], golden["classes"]
    kept, scores = batched_soft_nms(*parts, method="hard", threshold=0.3)
    assert kept.tolist() == batched_nms(*parts, 0.3).tolist()
    assert torch.equal(scores, golden["scores"][kept])


def test_boxes_of_other_classes_and_places_do_not_touch() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    far = box + 100
    scores = torch.tensor([0.9, 0.8, 0.7])
    kept, left = batched_soft_nms(torch.cat([box, box, far]), scores, torch.tensor([0, 1, 0]))
    assert kept.tolist() == [0, 1, 2]
    assert torch.equal(left, scores)


def test_second_copy_of_a_box_decays_by_the_gaussian_of_one() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    _, scores = batched_soft_nms(
        boxes, torch.tensor([2.5, 0.5]), torch.zeros(2, dtype=torch.long), sigma=0.5
    )
    assert scores.tolist() == pytest.approx([2.5, 0.5 * np.exp(-2.0)])


def test_decayed_boxes_are_pruned() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    kept, _ = batched_soft_nms(
        boxes, torch.tensor([0.9, 0.5]), torch.zeros(2, dtype=torch.long), prune=0.1
    )
    assert kept.tolist() == [0]


def test_no_boxes_give_no_boxes() -> None:
    kept, scores = batched_soft_nms(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)
    )
    assert kept.shape == scores.shape == (0,)
    assert kept.dtype == torch.long


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'softer'"):
        batched_soft_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), method="softer")
