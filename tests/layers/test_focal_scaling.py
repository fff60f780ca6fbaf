"""The scaled cross entropy against the published code and torch's own."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.layers.focal_scaling import focal_scaled_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "regionclip" / "box_predictor_losses.npz"
CASES = list(itertools.product(("soft", "temp"), ("None", "0.5", "2.0"), ("None", "0.2", "0.8")))


@pytest.fixture
def golden():
    with np.load(GOLDEN) as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


@pytest.mark.parametrize(("logits", "gamma", "weight"), CASES)
def test_loss_and_gradient_are_those_of_the_published_code(golden, logits, gamma, weight) -> None:
    case = f"_{logits}_gamma{gamma}_bg{weight}"
    given = golden["loss_logits" if logits == "soft" else "logits_train"].clone().requires_grad_()
    loss = focal_scaled_loss(
        given,
        golden["targets"],
        gamma=0.0 if gamma == "None" else float(gamma),
        background_weight=1.0 if weight == "None" else float(weight),
        normalize=gamma == "None",
    )
    loss.backward()
    torch.testing.assert_close(
        loss.detach(), golden[f"loss_cls{case}"].float(), rtol=1e-5, atol=1e-5
    )
    # The published gradient is not a number where a region is certain of its label.
    expected = golden[f"grad{case}"].nan_to_num(0.0)
    torch.testing.assert_close(given.grad, expected, rtol=1e-5, atol=1e-6)


def test_gradient_is_finite_where_the_published_one_is_not(golden) -> None:
    assert golden["grad_temp_gamma0.5_bg0.2"].isnan().any()
    given = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    focal_scaled_loss(given, torch.tensor([0]), gamma=0.5).backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()


def test_without_scaling_it_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    torch.testing.assert_close(focal_scaled_loss(logits, labels), F.cross_entropy(logits, labels))
    torch.testing.assert_close(
        focal_scaled_loss(logits, labels, background_weight=0.2, normalize=True),
        F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 1.0, 1.0, 0.2])),
    )


def test_no_regions_cost_nothing() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = focal_scaled_loss(logits, torch.zeros(0, dtype=torch.long), gamma=0.5, normalize=True)
    loss.backward()
    assert loss.item() == 0.0


def test_background_alone_of_weight_zero_costs_nothing() -> None:
    loss = focal_scaled_loss(
        torch.randn(2, 3), torch.tensor([2, 2]), background_weight=0.0, normalize=True
    )
    assert loss.item() == 0.0
