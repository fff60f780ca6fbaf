"""Suppression with a limit against torchvision, and soft suppression against published code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from clipself_d2.layers import nms
from clipself_d2.layers.nms import batched_soft_nms, limited_nms

GOLDEN = Path(__file__).parents[1] / "golden" / "regionclip" / "soft_nms.npz"


def crowd(count: int, num_classes: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    corner = (spread * torch.rand(count, 2, generator=rng)).round()
    boxes = torch.cat([corner, corner + 20], 1)
    # Of 50 scores many are equal.
    scores = torch.randint(1, 50, (count,), generator=rng) / 50
    return boxes, scores, torch.randint(num_classes, (count,), generator=rng)


@pytest.mark.parametrize("limit", [-1, 0, 1, 20, 100, 10_000])
@pytest.mark.parametrize(
    ("count", "num_classes", "spread"), [(0, 3, 1), (900, 9, 300), (3000, 700, 300), (3000, 2, 8)]
)
def test_kept_boxes_are_the_first_of_all_that_torchvision_keeps(
    count: int, num_classes: int, spread: float, limit: int
) -> None:
    boxes, scores, classes = crowd(count, num_classes, spread)
    expected = batched_nms(boxes, scores, classes, 0.4)
    kept = limited_nms(boxes, scores, classes, 0.4, limit)
    first = expected if limit < 0 else expected[:limit]
    # Among equal scores the order is open, and so who is the last.
    assert torch.equal(scores[kept], scores[first])
    assert set(kept.tolist()) <= set(expected.tolist())
    certain = first[scores[first] > scores[first].min()] if len(first) else first
    assert set(certain.tolist()) <= set(kept.tolist())


def test_only_the_best_boxes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = nms.nms
    monkeypatch.setattr(
        nms, "nms", lambda boxes, *rest: (seen.append(len(boxes)), original(boxes, *rest))[1]
    )
    boxes, scores, classes = crowd(3000, 40, 300)
    limited_nms(boxes, scores + torch.arange(3000) * 1e-6, classes, 0.4, 10)
    assert 10 <= sum(seen) <= 40


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
