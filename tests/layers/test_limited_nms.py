"""NMS that stops at a limit: the beginning of torchvision's, with ties and with little to keep."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from clipself_d2.layers.limited_nms import limited_nms


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
    from clipself_d2.layers import limited_nms as module

    original = module.nms
    monkeypatch.setattr(
        module, "nms", lambda boxes, *rest: (seen.append(len(boxes)), original(boxes, *rest))[1]
    )
    boxes, scores, classes = crowd(3000, 40, 300)
    limited_nms(boxes, scores + torch.arange(3000) * 1e-6, classes, 0.4, 10)
    assert 10 <= sum(seen) <= 40
