import math

import pytest
import torch

from clipself_d2.distillation.objectives import (
    REDUCTIONS,
    affinity,
    affinity_loss,
    grouped_kl,
    map_match,
    spatial_target,
)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))


def test_affinity_is_symmetric_with_ones_and_knows_no_scale(features) -> None:
    found = affinity(features)
    torch.testing.assert_close(found, found.transpose(1, 2))
    torch.testing.assert_close(found.diagonal(dim1=1, dim2=2), torch.ones(2, 6))
    torch.testing.assert_close(affinity(features * 7.0), found)
    rows = torch.tensor([4, 1])
    torch.testing.assert_close(affinity(features, rows), found[:, rows])


def test_reductions_of_two_by_two_by_hand() -> None:
    student = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    teacher = torch.tensor([[[1.0, 0.6], [0.8, 1.0]]])
    got = {name: float(affinity_loss(student, teacher, reduction=name)) for name in REDUCTIONS}
    assert got["row_l2"] == pytest.approx((0.6 + 0.8) / 2)
    assert got["mse_rowsum"] == pytest.approx((0.36 + 0.64) / 2)
    assert got["mse_mean"] == pytest.approx((0.36 + 0.64) / 4)

    def kl(own: float, other: float) -> float:
        p = 1 / (1 + math.exp((own - 1) / 0.2))
        q = 1 / (1 + math.exp((other - 1) / 0.2))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    assert got["kl"] == pytest.approx((kl(0.6, 0.0) + kl(0.8, 0.0)) / 2, rel=1e-5)


@pytest.mark.parametrize("reduction", ["row_l2", "mse_mean", "mse_rowsum", "kl"])
def test_equal_affinities_cost_nothing_and_pull_nowhere(features, reduction) -> None:
    own = features.clone().requires_grad_()
    loss = affinity_loss(affinity(own), affinity(features), reduction=reduction)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(own.grad).all()
    assert float(own.grad.abs().max()) < 1e-5


def test_cross_entropy_is_least_where_affinities_agree(features) -> None:
    target = affinity(features)
    least = affinity_loss(target, target, reduction="cross_entropy")
    other = affinity_loss(affinity(features.flip(1)), target, reduction="cross_entropy")
    assert float(other) > float(least) > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_has_no_part_in_any_reduction(features, reduction) -> None:
    real = torch.tensor([[True] * 4 + [False] * 2] * 2)
    other = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    spoiled = features.clone()
    spoiled[:, 4:] = 50.0
    values = [
        affinity_loss(
            affinity(own), affinity(other), reduction=reduction, real_NS=real, real_NT=real
        )
        for own in (features, spoiled)
    ]
    cut = affinity_loss(affinity(features[:, :4]), affinity(other[:, :4]), reduction=reduction)
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], cut)


def test_equal_logits_have_no_divergence() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(2)) * 9
    assert grouped_kl(logits, logits, num_things=3).abs().max() < 1e-6


def test_things_ignore_the_columns_of_stuff_and_stuff_does_not() -> None:
    teacher = torch.tensor([[8.0, 1.0, 0.0, 0.0], [0.0, 0.0, 8.0, 1.0]])
    student = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
    changed = student + torch.tensor([0.0, 0.0, 3.0, -2.0])
    first, second = (grouped_kl(part, teacher, num_things=2) for part in (student, changed))
    assert float(first[0]) == pytest.approx(float(second[0]))
    assert float(first[1]) != pytest.approx(float(second[1]))


def test_regions_of_which_the_teacher_is_unsure_take_no_part() -> None:
    teacher = torch.tensor([[0.1, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    found = grouped_kl(torch.zeros(2, 4), teacher, num_things=4, threshold=0.3)
    assert float(found[0]) == 0.0
    assert float(found[1]) > 0.5


def test_no_region_gives_no_divergence() -> None:
    assert grouped_kl(torch.zeros(0, 4), torch.zeros(0, 4), num_things=2).shape == (0,)


def test_a_target_of_one_cell_is_the_row_of_the_strongest(features) -> None:
    rows = affinity(features)[0]
    semantic = torch.tensor([[0.0, 0.2, 0.9, 0.1, 0.0, 0.0]])
    got = spatial_target(semantic, rows, top=1, shares=(0.0, 1.0))
    torch.testing.assert_close(got[0], rows[2])
    mixed = spatial_target(semantic, rows, top=1, shares=(0.7, 0.3))
    torch.testing.assert_close(mixed[0], 0.7 * semantic[0] + 0.3 * rows[2])


def test_maps_by_hand() -> None:
    student, target = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.45, 0.4]])
    assert float(map_match(student, target, kind="l2")) == pytest.approx((0.0025 + 0.16) / 2)
    # Huber of 0.05 and 0.4 at 0.1, and a tenth of the divergence of target from student.
    huber = 0.5 * 0.05**2 + 0.1 * (0.4 - 0.05)
    p, q = (1 / (1 + math.exp(-gap)) for gap in (0.5, 0.05))
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(map_match(student, target)) == pytest.approx(huber + 0.1 * divergence, rel=1e-4)
