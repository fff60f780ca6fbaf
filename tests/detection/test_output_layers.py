"""The predictor: loss and fused scores against the reference, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipself_d2.detection import OpenVocabFastRCNNOutputLayers, output_layers
from clipself_d2.layers import TextClassifier

GOLDEN = Path(__file__).parents[1] / "golden" / "detector"
WIDTH, K, D = 12, 5, 8
BASE = torch.tensor([True, True, False, True, False])
NUM_REGIONS = 7


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(classifier: TextClassifier | None = None, **options: object):
    torch.manual_seed(0)
    if classifier is None:
        classifier = TextClassifier(
            embeddings_KD=random(K, D), base_mask_K=BASE, background=random(D, seed=1)
        )
    return OpenVocabFastRCNNOutputLayers(
        ShapeSpec(channels=WIDTH),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        classifier=classifier,
        **options,
    )


def labelled(labels: list[int]) -> list[Instances]:
    boxes = torch.tensor([[8.0, 8.0, 24.0, 24.0]]).repeat(len(labels), 1)
    return [
        Instances(
            (64, 64),
            proposal_boxes=Boxes(boxes),
            gt_boxes=Boxes(boxes + 2),
            gt_classes=torch.tensor(labels, dtype=torch.long),
        )
    ]


def test_losses_of_the_predictor_are_the_references() -> None:
    arrays = golden("fvit_cls_loss")
    weight = arrays["class_weight"]
    base_mask = weight[:-1] > 0
    classifier = TextClassifier(
        embeddings_KD=random(len(base_mask), D), base_mask_K=base_mask, background=random(D)
    )
    predictor = make(classifier, background_weight=float(weight[-1]))
    proposals = labelled(arrays["labels"].tolist())
    with EventStorage():
        losses = predictor.losses((arrays["logits"], torch.zeros(NUM_REGIONS, 4)), proposals)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    torch.testing.assert_close(losses["loss_cls"].double(), arrays["loss"], atol=1e-5, rtol=0)
    # Of 7 regions 4 are foreground, shifted by 2 px of 16, coded with weight 10: L1 of 1.25 twice.
    torch.testing.assert_close(losses["loss_box_reg"], torch.tensor(4 * 2 * 1.25 / NUM_REGIONS))


def test_fused_scores_are_the_references() -> None:
    arrays = golden("score_fusion")
    classifier = TextClassifier(
        embeddings_KD=arrays["text_embed"][:-1],
        base_mask_K=arrays["base"][:-1],
        background=arrays["text_embed"][-1],
        scale=float(arrays["t_det"]),
    )
    predictor = make(
        classifier,
        clip_scale=float(arrays["t_vlm"]),
        alpha=float(arrays["alpha"]),
        beta=float(arrays["beta"]),
    )
    logits = classifier(arrays["x_cls"])
    sizes = [3, 0, 4]
    proposals = [Instances((64, 64), clip_embeddings=rows) for rows in arrays["x_vlm"].split(sizes)]
    scores = predictor.predict_probs((logits, torch.zeros(NUM_REGIONS, 4)), proposals)
    assert [len(rows) for rows in scores] == sizes
    torch.testing.assert_close(torch.cat(scores), arrays["fused"], atol=1e-5, rtol=0)


def test_no_region_gives_zero_losses() -> None:
    predictor = make()
    with EventStorage():
        losses = predictor.losses(predictor(torch.zeros(0, WIDTH)), labelled([]))
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (2, r"novel class number 2.*not base-only.*DATASETS\.TRAIN"),
        (K + 1, r"class number 6, but the vocabulary has 5.*MODEL\.VOCABULARY\.DATASET"),
        (-1, "class number -1"),
    ],
)
def test_box_of_a_class_that_is_not_trained_is_refused(label: int, complaint: str) -> None:
    predictor = make()
    predictions = predictor(random(3, WIDTH))
    with EventStorage(), pytest.raises(ValueError, match=complaint):
        predictor.losses(predictions, labelled([0, label, K]))


def test_branches_are_those_of_fvit() -> None:
    predictor = make()
    region = random(4, WIDTH, seed=3)
    logits, deltas = predictor(region)
    embed, _, classifier = predictor.cls_score
    assert (embed.in_features, embed.out_features) == (WIDTH, D)
    torch.testing.assert_close(logits, classifier(embed(region).clamp(min=0)))
    hidden, _, last = predictor.bbox_pred
    assert (hidden.out_features, last.out_features) == (WIDTH, 4)
    torch.testing.assert_close(deltas, last(hidden(region).clamp(min=0)))
    assert logits.shape == (4, K + 1)


def test_every_parameter_learns() -> None:
    predictor = make()
    with torch.no_grad():
        nn.init.normal_(predictor.bbox_pred[-1].weight)
    with EventStorage():
        losses = predictor.losses(predictor(random(8, WIDTH)), labelled([0, 1, 3, 0, K, K, K, K]))
    sum(losses.values()).backward()
    still = [name for name, p in predictor.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []


def test_training_reduces_the_loss() -> None:
    predictor = make()
    region, proposals = random(8, WIDTH), labelled([0, 1, 3, 0, 1, 3, K, K])
    optimizer = torch.optim.SGD(predictor.parameters(), lr=0.01)
    history = []
    with EventStorage():
        for _ in range(40):
            loss = predictor.losses(predictor(region), proposals)["loss_cls"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    assert history[-1] < 0.1 * history[0]


def test_mixed_precision_keeps_scores_and_loss_in_float32() -> None:
    predictor = make()
    proposals = labelled([0, 1, K])
    proposals[0].clip_embeddings = random(3, D, seed=4)
    with torch.autocast("cpu", dtype=torch.bfloat16), EventStorage():
        predictions = predictor(random(3, WIDTH))
        (scores,) = predictor.predict_probs(predictions, proposals)
        losses = predictor.losses(predictions, proposals)
    assert scores.dtype == torch.float32
    assert losses["loss_cls"].dtype == torch.float32


def test_scores_without_clip_embeddings_are_refused() -> None:
    predictor = make()
    with pytest.raises(ValueError, match=r"'clip_embeddings'.*MODEL\.ROI_HEADS\.NAME"):
        predictor.predict_probs(predictor(random(3, WIDTH)), labelled([0, 1, K]))


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("BACKGROUND", "zero", lambda p: p.classifier.background_mode),
        ("SCALE", 20.0, lambda p: p.classifier.scale.item()),
        ("LEARN_SCALE", False, lambda p: p.classifier.scale.requires_grad),
        ("CLIP_SCALE", 33.0, lambda p: p.clip_scale),
        ("ENSEMBLE_ALPHA", 0.3, lambda p: p.alpha),
        ("ENSEMBLE_BETA", 0.5, lambda p: p.beta),
    ],
)
def test_config_keys_arrive(
    key: str, value: object, read: Callable[..., object], heads_cfg: CfgNode
) -> None:
    heads_cfg.MODEL.OPEN_VOCAB[key] = value
    predictor = OpenVocabFastRCNNOutputLayers(heads_cfg, ShapeSpec(channels=WIDTH))
    assert read(predictor) == value


def many_classes(count: int, num_images: int) -> tuple[OpenVocabFastRCNNOutputLayers, tuple]:
    """A predictor with sure scores, its predictions, and its proposals of several images."""
    classifier = TextClassifier(
        embeddings_KD=random(count, D),
        base_mask_K=torch.arange(count) % 4 != 3,
        background=random(D, seed=1),
    )
    predictor = make(
        classifier, test_score_thresh=0.01, test_nms_thresh=0.4, test_topk_per_image=30
    )
    proposals = []
    for number in range(num_images):
        corner = 40 * random(60 + number, 2, seed=number).abs()
        # Two like regions have like scores.
        clip = random(60 + number, D, seed=10 + number).round(decimals=1)
        clip[1] = clip[0]
        boxes = torch.cat([corner, corner + 20], 1)
        boxes[1] = boxes[0]
        proposals.append(Instances((100, 120), proposal_boxes=Boxes(boxes), clip_embeddings=clip))
    total = sum(map(len, proposals))
    logits, deltas = 5 * random(total, count + 1, seed=20), random(total, 4, seed=21)
    logits[1] = logits[0]
    logits[5], deltas[7] = float("nan"), float("inf")
    return predictor, (logits, deltas), proposals


@pytest.mark.parametrize("count", [9, 700])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.2])
def test_detections_are_those_of_all_scores(monkeypatch, count: int, threshold: float) -> None:
    # Seven regions of 700 classes at once.
    monkeypatch.setitem(output_layers._AT_ONCE, "cpu", 5000)
    predictor, predictions, proposals = many_classes(count, num_images=3)
    predictor.test_score_thresh = threshold
    found, rows = predictor.inference(predictions, proposals)
    boxes = predictor.predict_boxes(predictions, proposals)
    scores = predictor.predict_probs(predictions, proposals)
    sizes = [item.image_size for item in proposals]
    expected, _ = fast_rcnn_inference(boxes, scores, sizes, threshold, 0.4, 30)
    for ours, theirs, numbers, own in zip(found, expected, rows, scores, strict=True):
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        # A power's last bit depends on its place in the processor's groups of numbers.
        torch.testing.assert_close(
            ours.scores, theirs.scores, rtol=0 if count == 9 else 3e-7, atol=0
        )
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        torch.testing.assert_close(own[numbers, ours.pred_classes], ours.scores, rtol=3e-7, atol=0)
    assert sum(map(len, found)) > 5


def test_few_scores_are_fused_where_there_are_many_classes() -> None:
    predictor, predictions, proposals = many_classes(700, num_images=1)
    sizes = []

    class Powers(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "pow" in str(func):
                sizes.append(args[0].numel() if isinstance(args[0], Tensor) else 0)
            return func(*args, **(kwargs or {}))

    with Powers():
        predictor.inference(predictions, proposals)
    assert sizes
    assert max(sizes) < 0.1 * predictions[0].numel()
