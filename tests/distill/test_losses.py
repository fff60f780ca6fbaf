import pytest
import torch

from clipself_d2.distill.losses import constant_prediction_loss, cosine_distances


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
