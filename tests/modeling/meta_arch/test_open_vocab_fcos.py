"""FCOS with text classes: training on base classes, and a vocabulary that can be changed."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor

from clipself_d2.modeling.meta_arch import OpenVocabFCOS
from clipself_d2.vocabulary import use_vocabulary


def test_a_step_trains_every_parameter_on_base_classes(dense_cfg, step) -> None:
    model, losses = step(dense_cfg("fcos"))
    assert isinstance(model, OpenVocabFCOS)
    assert isinstance(model, FCOS)
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert all(loss.isfinite() for loss in losses.values())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {"head.cls_score.classifier.temperature", "head.cls_score.classifier.shift"} <= set(
        trained
    )
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_scores_come_back_with_the_vocabulary(dense_cfg, first_scene, typed) -> None:
    cfg = dense_cfg("fcos")
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


def test_text_does_not_enter_the_checkpoint(dense_cfg) -> None:
    saved = [key for key in build_model(dense_cfg("fcos")).state_dict() if "classifier" in key]
    prefix = "head.cls_score.classifier."
    assert saved == [f"{prefix}temperature", f"{prefix}shift"]


def test_another_number_of_classes_is_refused(dense_cfg) -> None:
    parts = OpenVocabFCOS.from_config(dense_cfg("fcos"))
    with pytest.raises(ValueError, match="num_classes is 7 but the vocabulary has 80"):
        OpenVocabFCOS(**parts, num_classes=7)
