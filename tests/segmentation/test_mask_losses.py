"""Assignment and losses on masks that can be checked by hand."""

import pytest
import torch

from clipself_d2.segmentation.mask_losses import MaskLoss, assign, mask_losses


def truth() -> torch.Tensor:
    masks = torch.zeros(2, 16, 16)
    masks[0, :, :8], masks[1, :, 8:] = 1, 1
    return masks


def perfect(order: list[int], queries: int = 3) -> torch.Tensor:
    masks = torch.full((queries, 16, 16), -20.0)
    for number, query in enumerate(order):
        masks[query] = 40.0 * truth()[number] - 20.0
    return masks


def logits(labels: list[int], sure: float = 20.0) -> torch.Tensor:
    return sure * torch.eye(4)[labels]


@pytest.mark.parametrize("order", [[0, 1], [2, 0], [1, 2]])
def test_masks_find_their_truth_in_any_order(order: list[int]) -> None:
    torch.manual_seed(0)
    rows, columns = assign(
        logits([3, 3, 3]),
        perfect(order),
        torch.tensor([1, 2]),
        truth(),
        MaskLoss(num_points=64),
    )
    assert dict(zip(columns.tolist(), rows.tolist(), strict=True)) == {0: order[0], 1: order[1]}


def test_equal_masks_are_told_apart_by_their_class() -> None:
    masks = perfect([0], queries=2)
    masks[1] = masks[0]
    rows, _ = assign(logits([2, 1]), masks, torch.tensor([1]), truth()[:1], MaskLoss(num_points=32))
    assert rows.tolist() == [1]


def losses(scores: torch.Tensor, masks: torch.Tensor, labels: list[int], true: torch.Tensor):
    torch.manual_seed(0)
    return mask_losses(
        scores[None],
        masks[None],
        [torch.tensor(labels, dtype=torch.long)],
        [true],
        MaskLoss(num_points=64),
    )


def test_losses_are_what_the_formulas_say() -> None:
    everywhere = torch.ones(1, 16, 16)
    good = losses(logits([1]), 20 * everywhere, [1], everywhere)
    bad = losses(logits([2]), -20 * everywhere, [1], everywhere)
    # Points at the border, where the uncertain ones are, have half a truth.
    assert all(float(value) < 0.15 * float(bad[name]) for name, value in good.items())
    assert float(good["loss_cls"]) < 1e-5
    flat = losses(torch.zeros(3, 4), torch.zeros(3, 16, 16), [1, 2], truth())
    # Every probability is a quarter; every pixel one half.
    torch.testing.assert_close(flat["loss_cls"], 2.0 * torch.tensor(4.0).log())
    torch.testing.assert_close(flat["loss_mask"], 5.0 * torch.tensor(2.0).log())
    assert 5.0 * 0.4 < float(flat["loss_dice"]) < 5.0 * 0.6


def test_void_counts_by_its_weight() -> None:
    scores = torch.zeros(3, 4)
    scores[0, 1] = 3.0
    masks = perfect([0])
    got = losses(scores, masks, [1], truth()[:1])["loss_cls"]
    log_probs = scores.log_softmax(-1)
    wanted = -(log_probs[0, 1] + 0.1 * (log_probs[1, 3] + log_probs[2, 3])) / (1 + 0.2)
    torch.testing.assert_close(got, 2.0 * wanted)


def test_a_picture_without_a_truth_has_finite_losses_and_gradients() -> None:
    masks = torch.zeros(3, 16, 16, requires_grad=True)
    got = losses(torch.zeros(3, 4), masks, [], truth()[:0])
    assert got["loss_mask"].item() == got["loss_dice"].item() == 0
    sum(got.values()).backward()
    assert masks.grad is not None
    assert torch.equal(masks.grad, torch.zeros_like(masks))
