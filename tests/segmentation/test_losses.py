"""The loss, by hand."""

import pytest
import torch

from clipself_d2.segmentation.losses import check_labels, number_base, pixel_class_loss

LABELS = torch.tensor([[[0, 255], [1, 0]]])


def by_hand(logits: torch.Tensor, masked: bool) -> float:
    total, count = 0.0, 0
    for row in range(2):
        for column in range(2):
            label = int(LABELS[0, row, column])
            if masked and label == 255:
                continue
            for number in range(3):
                score = torch.sigmoid(logits[0, number, row, column])
                total -= float(torch.log(score if number == label else 1 - score))
                count += 1
    return total / count


@pytest.mark.parametrize("masked", [False, True])
def test_ignored_pixels_are_negatives_or_left_out(masked):
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    loss = pixel_class_loss(logits, LABELS, ignore_label=255, mask_ignored=masked)
    assert float(loss) == pytest.approx(by_hand(logits, masked), abs=1e-6)


def test_nothing_but_ignored_pixels_costs_nothing_when_left_out():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_class_loss(logits, torch.full((1, 2, 2), 255), ignore_label=255, mask_ignored=True)
    assert float(loss.detach()) == 0
    loss.backward()
    assert logits.grad.isfinite().all()


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(ValueError, match="class 7, but there are 3 classes"):
        check_labels(LABELS.clamp(max=7), 3, 255)


def test_novel_classes_are_no_classes_of_the_loss() -> None:
    base = torch.tensor([True, False, True, True])
    labels = torch.tensor([[0, 1, 2, 3, 255]])
    assert number_base(labels, base, 255).tolist() == [[0, 255, 1, 2, 255]]
