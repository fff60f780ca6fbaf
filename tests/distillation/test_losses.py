import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.distillation.losses import (
    REDUCTIONS,
    affinity,
    affinity_loss,
    constant_prediction_loss,
    cosine_distances,
    federated_bce,
    grouped_kl,
    map_match,
    sample_classes,
    spatial_target,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "distill"


def test_equal_vectors_have_distance_0_and_opposite_ones_2() -> None:
    vectors = torch.randn(4, 8)
    torch.testing.assert_close(cosine_distances(vectors, 3 * vectors), torch.zeros(4))
    torch.testing.assert_close(cosine_distances(vectors, -vectors), torch.full((4,), 2.0))


def test_orthogonal_vectors_have_distance_1() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert float(cosine_distances(a, b)) == pytest.approx(1.0)


def test_the_gradient_is_the_projected_teacher_over_the_norm() -> None:
    student = torch.tensor([[3.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.6, 0.8]])
    cosine_distances(student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, -0.8 / 3]]))


def test_no_region_gives_no_distance() -> None:
    assert cosine_distances(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_half_precision_is_scored_in_float32() -> None:
    assert cosine_distances(torch.ones(1, 4).half(), torch.ones(1, 4).half()).dtype == torch.float32


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(3, 4\)"):
        cosine_distances(torch.zeros(2, 4), torch.zeros(3, 4))


def test_the_yardstick_is_the_loss_of_the_best_constant() -> None:
    teacher = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
    mean = teacher.mean(0, keepdim=True).expand_as(teacher)
    best = float(cosine_distances(mean, teacher).mean())
    assert constant_prediction_loss(teacher) == pytest.approx(best, abs=1e-6)
    for _ in range(20):
        other = torch.randn(1, 6).expand_as(teacher)
        assert float(cosine_distances(other, teacher).mean()) >= best - 1e-6


def test_the_yardstick_without_regions_is_0() -> None:
    assert constant_prediction_loss(torch.zeros(0, 4)) == 0.0


def test_federated_bce_meets_the_golden_value() -> None:
    data = np.load(GOLDEN / "region_text.npz")
    text, region, label, sampled = (
        torch.from_numpy(data[key])
        for key in ("noun_embeddings", "box_features", "labels", "sampled")
    )
    losses = federated_bce(region, text, label, sampled, float(data["temperature"]))
    assert float(losses.mean()) == pytest.approx(float(data["loss"]), rel=1e-6)


def test_the_order_of_the_sampled_classes_does_not_matter() -> None:
    region, text = torch.randn(4, 8), torch.nn.functional.normalize(torch.randn(6, 8), dim=1)
    label = torch.tensor([0, 5, 5, 2])
    first = federated_bce(region, text, label, torch.tensor([0, 2, 5]), 10.0)
    second = federated_bce(region, text, label, torch.tensor([5, 0, 2]), 10.0)
    torch.testing.assert_close(first, second)


def test_sampled_classes_hold_all_of_the_batch_and_no_class_twice() -> None:
    label = torch.tensor([7, 3, 7, 0])
    sampled = sample_classes(label, 20, 8, torch.Generator().manual_seed(1))
    assert sampled[:3].tolist() == [0, 3, 7]
    assert len(sampled) == 8
    assert len(set(sampled.tolist())) == 8
    assert int(sampled.max()) < 20


def test_a_batch_with_many_classes_is_scored_against_those_alone() -> None:
    sampled = sample_classes(torch.arange(9), 20, 5, torch.Generator())
    assert sampled.tolist() == list(range(9))


def test_no_more_classes_are_drawn_than_there_are() -> None:
    sampled = sample_classes(torch.tensor([1]), 4, 100, torch.Generator())
    assert sorted(sampled.tolist()) == [0, 1, 2, 3]


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


def test_a_region_counts_by_the_number_of_its_group_that_takes_part() -> None:
    sure = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    zeros = torch.zeros(4, 4)
    # One thing and one stuff, then two things, one stuff, and one that takes no part.
    one = grouped_kl(zeros[:2], sure, num_things=2, threshold=0.6)
    more = grouped_kl(
        zeros, torch.cat([sure[:1], sure, torch.zeros(1, 4)]), num_things=2, threshold=0.6
    )
    by_hand = F.kl_div(zeros[:1, :2].log_softmax(1), sure[:1, :2].softmax(1), reduction="sum")
    torch.testing.assert_close(one[0], by_hand)
    torch.testing.assert_close(more, torch.stack([one[0] / 2, one[0] / 2, one[1], 0 * one[0]]))


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
