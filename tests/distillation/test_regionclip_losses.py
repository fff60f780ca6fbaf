from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.distillation.regionclip_losses import (
    concept_contrastive,
    image_text_contrastive,
    multi_positive_loss,
    pseudo_labels,
    region_distillation,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "regionclip" / "pretrain_losses.npz"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# At the temperature 0.01 rounding of cosines is a hundredfold.
STEEP = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("threshold", [0.15, 0.2, 0.3, 1.5])
def test_region_losses_and_gradients_are_those_of_the_published_code(golden, threshold) -> None:
    found = {k: v for k, v in golden.items() if k.startswith(f"thr{threshold}_")}
    expected = {k.split("_", 1)[1]: v for k, v in found.items()}
    student = golden["student_region_feats"].clone().requires_grad_()
    concepts = golden["concept_emb"]
    labels = pseudo_labels(
        golden["teacher_region_feats"], golden["teacher_concept_emb"], threshold=threshold
    )
    assert torch.equal(labels.keep, expected["keep"])
    assert torch.equal(labels.targets, expected["target"])
    torch.testing.assert_close(labels.log_probs.exp(), expected["teacher_probs"], **CLOSE)
    distill = region_distillation(student[labels.keep], concepts, labels.log_probs).mean()
    contrast = concept_contrastive(student[labels.keep], concepts, labels.targets).mean()
    torch.testing.assert_close(distill, expected["loss_distill"], **STEEP)
    torch.testing.assert_close(contrast, expected["loss_contrastive"], **STEEP)
    (distill + contrast).backward()
    torch.testing.assert_close(student.grad, expected["grad_student"], **STEEP)


def test_image_text_loss_and_gradient_are_those_of_the_published_code(golden) -> None:
    image = golden["global_feats"].clone().requires_grad_()
    loss = image_text_contrastive(image, golden["text_embs"])
    loss.backward()
    torch.testing.assert_close(loss, golden["loss_img_txt"], **CLOSE)
    torch.testing.assert_close(image.grad, golden["grad_global"], **CLOSE)


def test_several_positives_are_added_as_in_the_published_code(golden) -> None:
    loss = multi_positive_loss(golden["mil_x"], golden["mil_t"] > 0).mean()
    torch.testing.assert_close(loss, golden["mil_sum"], **CLOSE)


def test_one_positive_is_cross_entropy(generator) -> None:
    logits, target = torch.randn(5, 7, generator=generator), torch.tensor([0, 6, 3, 3, 1])
    expected = F.cross_entropy(logits, target, reduction="none")
    loss = multi_positive_loss(logits, F.one_hot(target, 7).bool())
    torch.testing.assert_close(loss, expected)


def test_regions_that_all_show_one_concept_cost_nothing(generator) -> None:
    student, concepts = torch.randn(4, 8, generator=generator), torch.eye(8)
    loss = concept_contrastive(student, concepts, torch.tensor([2, 2, 2, 2]))
    torch.testing.assert_close(loss, torch.zeros(4), atol=1e-5, rtol=0)


def test_a_student_that_sees_what_the_teacher_sees_distils_for_nothing(generator) -> None:
    regions, concepts = (torch.randn(n, 8, generator=generator) for n in (6, 5))
    labels = pseudo_labels(regions, concepts, threshold=0.0)
    loss = region_distillation(3.0 * regions, concepts, labels.log_probs)
    torch.testing.assert_close(loss, torch.zeros(6), atol=1e-5, rtol=0)


def test_opposite_features_leave_losses_and_gradients_finite() -> None:
    # Logits of +-100: the softmax itself underflows in float32.
    concepts = torch.cat([torch.eye(4), -torch.eye(4)])
    teacher = torch.eye(4)
    student = (-teacher).clone().requires_grad_()
    labels = pseudo_labels(teacher, concepts, threshold=0.1)
    loss = region_distillation(student, concepts, labels.log_probs)
    loss = loss + concept_contrastive(student, concepts, labels.targets)
    loss.sum().backward()
    assert float(loss.detach().min()) > 99
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


def test_the_threshold_is_strict() -> None:
    # Two concepts alike: both have the probability 1/2 exactly.
    labels = pseudo_labels(torch.eye(2)[:1], torch.eye(2)[[0, 0]], threshold=0.5)
    assert labels.keep.tolist() == [True], "nothing passes, so that all are kept"
    both = torch.eye(3)[[0, 2]]
    labels = pseudo_labels(both, torch.eye(3)[[0, 0, 2]], threshold=0.5)
    assert labels.keep.tolist() == [False, True]


def test_no_region_gives_an_empty_loss_with_a_graph() -> None:
    student, concepts = torch.zeros(0, 4, requires_grad=True), torch.eye(4)
    labels = pseudo_labels(torch.zeros(0, 4), concepts, threshold=0.1)
    loss = region_distillation(student, concepts, labels.log_probs).sum()
    loss = loss + concept_contrastive(student, concepts, labels.targets).sum()
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad.shape == (0, 4)


def test_matching_pairs_beat_exchanged_ones(generator) -> None:
    pairs = torch.randn(4, 8, generator=generator)
    right = image_text_contrastive(pairs, 2.0 * pairs)
    wrong = image_text_contrastive(pairs, pairs.flip(0))
    torch.testing.assert_close(right, torch.tensor(0.0), atol=1e-4, rtol=0)
    assert float(wrong) > 10
