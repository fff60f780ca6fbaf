"""RegionCLIP's box predictor: golden logits, deltas and losses, and what it trains."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from clipself_d2.detection.embedding_predictor import EmbeddingFastRCNNOutputLayers
from clipself_d2.vocabulary import use_vocabulary

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def build(
    kit: SimpleNamespace, table: str = "class_emb", **options
) -> EmbeddingFastRCNNOutputLayers:
    golden = kit.npz("box_predictor_losses")
    predictor = EmbeddingFastRCNNOutputLayers(
        ShapeSpec(channels=32),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        classifier=kit.classifier(golden[table], float(golden["temperature"])),
        **options,
    )
    with torch.no_grad():
        predictor.bbox_pred.weight.copy_(golden["bbox_w"])
        predictor.bbox_pred.bias.copy_(golden["bbox_b"])
    return predictor


def sample(kit: SimpleNamespace) -> list[Instances]:
    targets = kit.npz("box_predictor_losses")["targets"]
    count = len(targets)
    proposals = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(count, 1))
    truth = Boxes(torch.tensor([[1.0, 1.0, 12.0, 11.0]]).repeat(count, 1))
    return [Instances((20, 20), proposal_boxes=proposals, gt_boxes=truth, gt_classes=targets)]


@pytest.mark.parametrize(
    ("table", "logits"), [("class_emb", "logits_train"), ("test_emb", "logits_test")]
)
def test_logits_and_deltas_are_those_of_the_published_code(kit, table, logits) -> None:
    golden = kit.npz("box_predictor_losses")
    own_logits, deltas = build(kit, table)(golden["x"])
    torch.testing.assert_close(own_logits, golden[logits], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(deltas, golden["deltas"], **CLOSE)
    assert (own_logits[:, -1] == 0).all()


@pytest.mark.parametrize(
    ("gamma", "weight", "case"),
    [(0.5, 0.2, "gamma0.5_bg0.2"), (0.0, 0.8, "gammaNone_bg0.8")],
)
def test_losses_are_those_of_the_published_code(kit, gamma, weight, case) -> None:
    golden = kit.npz("box_predictor_losses")
    predictor = build(
        kit, background_weight=weight, focal_gamma=gamma, normalize_weights=gamma == 0
    )
    with EventStorage():
        losses = predictor.losses((golden["loss_logits"], torch.zeros(12, 4)), sample(kit))
    torch.testing.assert_close(losses["loss_cls"], golden[f"loss_cls_soft_{case}"].float(), **CLOSE)
    torch.testing.assert_close(losses["loss_box_reg"], golden["loss_box_reg_soft"].float(), **CLOSE)


def test_novel_classes_leave_the_loss_as_a_vocabulary_of_base_classes_does(kit) -> None:
    golden = kit.npz("box_predictor_losses")
    table = torch.cat([golden["class_emb"], golden["test_emb"]])
    both = build(kit)
    both.cls_score = kit.classifier(table, float(golden["temperature"]), base=6)
    alone, items = build(kit), sample(kit)
    renumbered = items[0].gt_classes.clone()
    renumbered[renumbered == 6] = len(table)
    wide = [Instances((20, 20), **{**items[0].get_fields(), "gt_classes": renumbered})]
    both.num_classes = len(table)
    with EventStorage():
        expected = alone.losses(alone(golden["x"]), items)
        got = both.losses(both(golden["x"]), wide)
    torch.testing.assert_close(got["loss_cls"], expected["loss_cls"])
    torch.testing.assert_close(got["loss_box_reg"], expected["loss_box_reg"])


def test_nothing_of_the_classifier_is_trained_or_stored(kit) -> None:
    predictor = build(kit)
    names = {"bbox_pred.weight", "bbox_pred.bias"}
    assert {name for name, _ in predictor.named_parameters()} == names
    assert set(predictor.state_dict()) == names


def test_classes_change_and_come_back(kit, pets) -> None:
    golden = kit.npz("box_predictor_losses")
    predictor = build(kit)
    before = predictor(golden["x"])[0]
    with pytest.raises(ValueError, match="8-d"), use_vocabulary(predictor, pets):
        pass
    assert torch.equal(predictor(golden["x"])[0], before)
