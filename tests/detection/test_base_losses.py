"""The loss over base classes: the reference's number, novel classes left out, and its edges."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats
from detectron2.utils.events import EventStorage
from torch import Tensor

from clipself_d2.detection.base_losses import base_only_loss, check_labels, log_accuracy, mask_novel

GOLDEN = Path(__file__).parents[1] / "golden" / "detector"
K = 5
BASE = torch.tensor([True, True, False, True, False])


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_references() -> None:
    arrays = golden("fvit_cls_loss")
    weight = arrays["class_weight"]
    loss = base_only_loss(arrays["logits"], arrays["labels"], weight[:-1] > 0, float(weight[-1]))
    torch.testing.assert_close(loss.double(), arrays["loss"], atol=1e-5, rtol=0)


def test_novel_logits_have_no_influence_and_no_gradient() -> None:
    logits = random(3, K + 1).requires_grad_()
    labels = torch.tensor([0, 3, K])
    loss = base_only_loss(logits, labels, BASE, 0.6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient[:, :-1][:, ~BASE], torch.zeros(3, 2))
    assert (gradient[:, [0, 1, 3, 5]] != 0).all()
    raised = logits.detach().clone()
    raised[:, :-1][:, ~BASE] += 100
    assert torch.equal(base_only_loss(raised, labels, BASE, 0.6), loss.detach())


def test_loss_of_equal_logits_is_known() -> None:
    logits = torch.zeros(4, K + 1)
    # Three base classes and the background: log 4 each, background regions weigh 0.5.
    loss = base_only_loss(logits, torch.tensor([0, 1, K, K]), BASE, 0.5)
    assert loss.item() == pytest.approx(math.log(4) * (1 + 1 + 0.5 + 0.5) / 4)


def test_loss_and_gradient_stay_finite_at_extreme_logits() -> None:
    logits = (1e4 * random(3, K + 1)).requires_grad_()
    loss = base_only_loss(logits, torch.tensor([0, 3, K]), BASE, 0.6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_no_region_gives_zero_loss_with_a_gradient() -> None:
    logits = torch.zeros(0, K + 1, requires_grad=True)
    loss = base_only_loss(logits, torch.zeros(0, dtype=torch.long), BASE, 0.6)
    assert loss.item() == 0.0
    loss.backward()


def test_masked_logits_are_a_copy_without_novel_columns() -> None:
    logits = random(2, K + 1)
    before = logits.clone()
    masked = mask_novel(logits, BASE)
    assert masked.isneginf().all(0).tolist() == [False, False, True, False, True, False]
    assert torch.equal(logits, before)


def test_background_and_base_classes_are_labels() -> None:
    check_labels(torch.tensor([0, 1, 3, K]), BASE)
    with pytest.raises(ValueError, match="novel class number 4"):
        check_labels(torch.tensor([0, 4]), BASE)


@pytest.mark.parametrize("labels", [[0, 1, 5, 5, 2, 5], [5, 5, 5, 5, 5, 5], []])
def test_accuracy_is_logged_as_by_detectron2(labels: list[int]) -> None:
    logits = 3 * torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(2))
    with EventStorage() as ours:
        log_accuracy(logits, torch.tensor(labels, dtype=torch.long))
    with EventStorage() as theirs:
        _log_classification_stats(logits, torch.tensor(labels, dtype=torch.long))
    assert ours.latest() == theirs.latest()
