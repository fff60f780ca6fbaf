from pathlib import Path

import numpy as np
import pytest
import torch

from clipself_d2.distillation.losses import (
    constant_prediction_loss,
    cosine_distances,
    federated_bce,
    sample_classes,
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
