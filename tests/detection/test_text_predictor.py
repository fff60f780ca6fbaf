"""Detections against the published code, and the fusion with objectness."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor

from clipself_d2.detection.embedding_predictor import EmbeddingFastRCNNOutputLayers
from clipself_d2.detection.text_predictor import multiply_objectness

PLAIN = {"test_score_thresh": 0.001, "test_nms_thresh": 0.5, "test_topk_per_image": 100}
FEW = {"test_score_thresh": 0.02, "test_nms_thresh": 0.3, "test_topk_per_image": 5}
VARIANTS = {
    "plain": PLAIN,
    "rpnscore": {"rpn_score": "raw_logit", **PLAIN},
    "softnms": {"soft_nms": "gaussian", **PLAIN},
    "softnms_rpnscore": {"soft_nms": "gaussian", "rpn_score": "raw_logit", **PLAIN},
    "nodelta": {"refine_boxes": False, "rpn_score": "raw_logit", **PLAIN},
    "nms03_thr02_top5": FEW,
}


def predict(kit: SimpleNamespace, **options: object) -> tuple[Instances, Tensor]:
    """Detections in the golden proposals, and the numbers of their proposals."""
    golden = kit.npz("inference")
    predictor = EmbeddingFastRCNNOutputLayers(
        ShapeSpec(channels=32),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        classifier=kit.classifier(golden["test_emb"], float(golden["temperature"])),
        **options,
    ).eval()
    with torch.no_grad():
        predictor.bbox_pred.weight.copy_(golden["bbox_w"])
        logits, _ = predictor(golden["feats"])
        proposals = Instances(
            tuple(golden["image_hw"].tolist()),
            proposal_boxes=Boxes(golden["boxes"]),
            objectness_logits=golden["objectness_logits"],
        )
        found, rows = predictor.inference((logits, golden["deltas"]), [proposals])
    return found[0], rows[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_are_those_of_the_published_code(kit, variant) -> None:
    golden = kit.npz("inference")
    found, rows = predict(kit, **VARIANTS[variant])
    count = int(golden[f"{variant}_n"])
    assert len(found) == count
    assert rows.tolist() == golden[f"{variant}_keep_row"][:count].tolist()
    assert found.pred_classes.tolist() == golden[f"{variant}_classes"][:count].tolist()
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.scores, golden[f"{variant}_scores"][:count], **close)
    torch.testing.assert_close(found.pred_boxes.tensor, golden[f"{variant}_boxes"][:count], **close)


def test_raw_logit_loses_proposals_that_the_sigmoid_keeps(kit) -> None:
    limits = PLAIN | {"test_score_thresh": 0.0, "test_topk_per_image": -1}
    logits = kit.npz("inference")["objectness_logits"]
    _, raw = predict(kit, rpn_score="raw_logit", **limits)
    found, sane = predict(kit, rpn_score="sigmoid", **limits)
    assert (logits[raw] >= 0).all()
    assert (logits[sane] < 0).any()
    assert found.scores.max() <= 1.0


def test_sigmoid_fusion_is_the_geometric_mean() -> None:
    scores, logits = torch.tensor([[0.25, 0.75]]), torch.tensor([0.0])
    fused = multiply_objectness(scores, logits, "sigmoid")
    torch.testing.assert_close(fused, torch.tensor([[0.125, 0.375]]).sqrt())
    assert multiply_objectness(scores, torch.tensor([-1.0]), "raw_logit").isnan().all()


def test_soft_nms_of_nothing_is_nothing(kit) -> None:
    limits = PLAIN | {"test_score_thresh": 2.0}
    found, rows = predict(kit, soft_nms="linear", **limits)
    assert len(found) == len(rows) == 0


@pytest.mark.parametrize(
    ("key", "value", "attribute"),
    [
        ("BACKGROUND_WEIGHT", 0.9, "background_weight"),
        ("FOCAL_GAMMA", 0.5, "focal_gamma"),
        ("NORMALIZE_WEIGHTS", True, "normalize_weights"),
        ("REFINE_BOXES", False, "refine_boxes"),
        ("RPN_SCORE", "sigmoid", "rpn_score"),
        ("SOFT_NMS", "linear", "soft_nms"),
    ],
)
def test_config_keys_arrive(heads_cfg, key: str, value: object, attribute: str) -> None:
    shape = ShapeSpec(channels=8)
    plain = EmbeddingFastRCNNOutputLayers(heads_cfg, shape)
    assert getattr(plain, attribute) == heads_cfg.MODEL.OPEN_VOCAB[key] != value
    heads_cfg.MODEL.OPEN_VOCAB[key] = value
    assert getattr(EmbeddingFastRCNNOutputLayers(heads_cfg, shape), attribute) == value


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"use_sigmoid_ce": True}, "USE_SIGMOID_CE"),
        ({"use_fed_loss": True}, "USE_FED_LOSS"),
    ],
)
def test_bad_settings_name_their_keys(kit, options: dict, key: str) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.\w+\.{key} is"):
        predict(kit, **options)


def test_objectness_is_missed_by_its_key(kit) -> None:
    predictor = EmbeddingFastRCNNOutputLayers(
        ShapeSpec(channels=32),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        classifier=kit.classifier(torch.randn(2, 32), 0.1),
        rpn_score="sigmoid",
    )
    bare = Instances((8, 8), proposal_boxes=Boxes(torch.zeros(1, 4)))
    with pytest.raises(ValueError, match="RPN_SCORE needs the objectness"):
        predictor.predict_probs(predictor(torch.randn(1, 32)), [bare])
