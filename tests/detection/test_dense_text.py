"""Text scores of dense heads, and a loss that leaves novel classes alone."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor, nn

from clipself_d2.detection import OpenVocabFCOS, OpenVocabRetinaNet, OpenVocabRetinaNetHead
from clipself_d2.detection.dense_text import (
    DenseTextScore,
    TextClassesMixin,
    put_text_score,
)
from clipself_d2.layers import SigmoidTextClassifier
from clipself_d2.parts.text_embeddings import build_sigmoid_classifier
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

BASE = torch.tensor([True, False, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_classifier() -> SigmoidTextClassifier:
    return SigmoidTextClassifier(embeddings_KD=random(3, 4), base_mask_K=BASE, scale=10.0)


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

    @classmethod
    def from_config(cls, head: nn.Module) -> dict[str, nn.Module]:
        return {"head": head}

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
    return Detector(head=head)


def test_novel_classes_are_no_negatives(detector: Detector) -> None:
    logits = random(1, 4, 3).requires_grad_()
    labels = [torch.tensor([0, 3, -1, 2])]
    loss = detector.losses([], [logits], labels, [])["loss_cls"]
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
        detector.losses([], [random(1, 1, 3)], [torch.tensor([label])], [])


def test_number_of_classes_follows_the_vocabulary(detector: Detector) -> None:
    detector.classifier.set_embeddings(random(9, 4), torch.ones(9, dtype=torch.bool), None)
    assert detector.num_classes == 9


def test_classifier_takes_the_base_classes_of_the_vocabulary() -> None:
    rows = F.normalize(random(2, 4), dim=1)
    vocabulary = Vocabulary.from_names(["cat", "owl"], novel=["owl"])
    given = TextEmbeddings(vocabulary, rows, None, "ViT-Ti-8-emoji", "emoji")
    classifier = build_sigmoid_classifier(given, prior=0.1, scale=7.0)
    assert classifier.base_mask.tolist() == [True, False]
    assert classifier.scale.item() == 7.0
    torch.testing.assert_close(classifier.shift.sigmoid().item(), 0.1)


DETECTORS = ("fcos", "retinanet")


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_trains_every_parameter_on_base_classes(dense_cfg, step, name: str) -> None:
    model, losses = step(dense_cfg(name))
    assert all(loss.isfinite() for loss in losses.values())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {"head.cls_score.classifier.scale", "head.cls_score.classifier.shift"} <= set(trained)
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize("name", DETECTORS)
def test_mixed_precision_decodes_boxes_in_full(dense_cfg, step, name: str) -> None:
    _, whole = step(dense_cfg(name))
    with torch.autocast("cpu", torch.bfloat16):
        _, half = step(dense_cfg(name))
    for key, loss in half.items():
        assert float(loss.detach()) == pytest.approx(float(whole[key].detach()), rel=0.05), key


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_come_back_with_the_vocabulary(dense_cfg, first_scene, typed, name: str) -> None:
    cfg = dense_cfg(name)
    torch.manual_seed(0)
    model, batch = build_model(cfg).eval(), first_scene(cfg)

    def detect() -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            found = model(batch)[0]["instances"]
        return found.scores, found.pred_classes, found.pred_boxes.tensor

    before = detect()
    with use_vocabulary(model, typed(model.classifier.embed_dim)):
        scores, classes, _ = detect()
        assert model.num_classes == 2
    after = detect()
    assert model.num_classes == 80
    assert len(scores) > 0
    assert set(classes.tolist()) <= {0, 1}
    assert not torch.equal(scores, before[0])
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", DETECTORS)
def test_text_does_not_enter_the_checkpoint(dense_cfg, name: str) -> None:
    saved = [key for key in build_model(dense_cfg(name)).state_dict() if "classifier" in key]
    prefix = "head.cls_score.classifier."
    assert saved == [f"{prefix}scale", f"{prefix}shift"]


def test_it_has_the_losses_of_detectron2s_retinanet(dense_cfg, step) -> None:
    model, losses = step(dense_cfg("retinanet"))
    assert isinstance(model, OpenVocabRetinaNet)
    assert isinstance(model, RetinaNet)
    assert set(losses) == {"loss_cls", "loss_box_reg"}


@pytest.mark.parametrize("num_anchors", [3, 6])
def test_every_anchor_of_a_cell_has_an_embedding_and_a_box(dense_cfg, num_anchors: int) -> None:
    cfg = dense_cfg("retinanet")
    parts = OpenVocabRetinaNet.from_config(cfg)
    classifier = parts["head"].cls_score.classifier
    shapes = [parts["backbone"].output_shape()["p3"]]
    head = OpenVocabRetinaNetHead(
        input_shape=shapes, classifier=classifier, num_anchors=num_anchors, conv_dims=[8]
    )
    assert head.cls_score.embed.out_channels == num_anchors * classifier.embed_dim
    assert head.bbox_pred.out_channels == num_anchors * 4


def test_it_has_the_losses_of_detectron2s_fcos(dense_cfg, step) -> None:
    model, losses = step(dense_cfg("fcos"))
    assert isinstance(model, OpenVocabFCOS)
    assert isinstance(model, FCOS)
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert model.head.cls_score.num_anchors == 1


def test_keys_of_retinanet_set_its_options(dense_cfg) -> None:
    keys = {"NUM_CONVS": 3, "FOCAL_LOSS_ALPHA": 0.4, "NMS_THRESH_TEST": 0.7}
    flat = [part for key, value in keys.items() for part in (f"MODEL.RETINANET.{key}", value)]
    model = OpenVocabFCOS(dense_cfg("fcos", *flat))
    assert len([part for part in model.head.bbox_subnet if isinstance(part, nn.Conv2d)]) == 3
    assert (model.focal_loss_alpha, model.test_nms_thresh) == (0.4, 0.7)
