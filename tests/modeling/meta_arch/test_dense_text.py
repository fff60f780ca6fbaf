"""Text scores of dense heads, and a loss that leaves novel classes alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.layers import SigmoidTextClassifier
from clipself_d2.modeling.meta_arch.dense_text import (
    DenseTextScore,
    TextClassesMixin,
    build_sigmoid_classifier,
    put_text_score,
)
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

BASE = torch.tensor([True, False, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_classifier() -> SigmoidTextClassifier:
    return SigmoidTextClassifier(embeddings_KD=random(3, 4), base_mask_K=BASE, temperature=10.0)


def test_scores_of_a_cell_are_those_of_each_anchor_s_embedding() -> None:
    torch.manual_seed(0)
    score = DenseTextScore(in_channels=5, num_anchors=2, classifier=make_classifier())
    feature = random(2, 5, 3, 4, seed=1)
    logits = score(feature)
    assert logits.shape == (2, 2 * 3, 3, 4)
    embedded = score.embed(feature)
    for anchor in range(2):
        for number in range(3):
            region = embedded[1, anchor * 4 : anchor * 4 + 4, 2, 3]
            cosine = F.cosine_similarity(region, random(3, 4)[number], dim=0)
            expected = 10 * cosine + score.classifier.shift
            torch.testing.assert_close(logits[1, anchor * 3 + number, 2, 3], expected)


class Plain(nn.Module):
    """What Detectron2's detectors do with the logits."""

    def __init__(self, head: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.head = head
        self.num_classes = num_classes

    def losses(self, anchors, pred_logits, gt_labels, *others) -> dict[str, Tensor]:
        labels = torch.stack(gt_labels)
        target = F.one_hot(labels.clamp(min=0), self.num_classes + 1)[..., :-1].float()
        loss = F.binary_cross_entropy_with_logits(pred_logits[0], target, reduction="none")
        return {"loss_cls": loss[labels >= 0].sum()}


class Detector(TextClassesMixin, Plain):
    pass


@pytest.fixture
def detector() -> Detector:
    head = nn.Module()
    put_text_score(head, [5, 6], 1, make_classifier())
    assert head.cls_score.embed.in_channels == 6
    return Detector(head, 3)


def test_novel_classes_are_no_negatives(detector: Detector) -> None:
    logits = random(1, 4, 3).requires_grad_()
    labels = [torch.tensor([0, 3, -1, 2])]
    loss = detector.losses([], [logits], labels)["loss_cls"]
    loss.backward()
    assert torch.equal(logits.grad[..., 1], torch.zeros(1, 4))
    assert (logits.grad[0, [0, 1, 3]][:, [0, 2]] != 0).all()
    without = Plain(detector.head, 2)
    fewer = [torch.tensor([0, 2, -1, 1])]
    expected = without.losses([], [logits[..., [0, 2]]], fewer)["loss_cls"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("label", "message"), [(1, "novel class number 1"), (7, "number 7")])
def test_labels_that_are_not_trained_are_refused(
    detector: Detector, label: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        detector.losses([], [random(1, 1, 3)], [torch.tensor([label])])


def test_number_of_classes_follows_the_vocabulary(detector: Detector) -> None:
    detector.classifier.set_embeddings(random(9, 4), torch.ones(9, dtype=torch.bool), None)
    assert detector.num_classes == 9
    with pytest.raises(ValueError, match="num_classes is 3 but the vocabulary has 9"):
        detector.num_classes = 3


def test_classifier_takes_the_base_classes_of_the_vocabulary() -> None:
    rows = F.normalize(random(2, 4), dim=1)
    vocabulary = Vocabulary.from_names(["cat", "owl"], novel=["owl"])
    given = TextEmbeddings(vocabulary, rows, None, "ViT-Ti-8-emoji", "emoji")
    classifier = build_sigmoid_classifier(given, prior=0.1, temperature=7.0)
    assert classifier.base_mask.tolist() == [True, False]
    assert classifier.temperature.item() == 7.0
    torch.testing.assert_close(classifier.shift.sigmoid().item(), 0.1)
