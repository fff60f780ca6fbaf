"""A cascade whose stages are heads of F-ViT."""

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from clipself_d2.detection import OpenVocabCascadeROIHeads, OpenVocabROIHeads
from clipself_d2.detection.output_layers import CLIP_FIELD
from clipself_d2.vocabulary import TextEmbeddings, use_vocabulary

WEIGHTS = [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 10.0, 10.0]]


@pytest.fixture
def make_cascade(
    heads_cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> Callable[..., OpenVocabCascadeROIHeads]:
    heads_cfg.merge_from_list(
        ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
        + ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.5, 0.6]]
        + ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", WEIGHTS]
    )

    def make(*overrides: object) -> OpenVocabCascadeROIHeads:
        heads_cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        heads = OpenVocabCascadeROIHeads(heads_cfg, input_shape)
        for predictor in heads.box_predictor:
            nn.init.normal_(predictor.bbox_pred[-1].weight, std=1.0)
        return heads.eval()

    return make


def detect(
    heads: nn.Module, features: dict[str, Tensor], items: list[Instances]
) -> list[Instances]:
    with torch.no_grad():
        return heads(None, features, items)[0]


def test_one_stage_is_the_plain_head(make_cascade, make_heads, features, proposals) -> None:
    one = ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.5]]
    one += ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", WEIGHTS[:1]]
    cascade, plain = make_cascade(*one), make_heads()
    assert isinstance(plain, OpenVocabROIHeads)
    plain.box_head.load_state_dict(cascade.box_head[0].state_dict())
    plain.box_predictor.load_state_dict(cascade.box_predictor[0].state_dict())
    pairs = zip(
        detect(cascade, features, proposals(6, 3)),
        detect(plain, features, proposals(6, 3)),
        strict=True,
    )
    for got, expected in pairs:
        assert len(got) == len(expected) > 0
        assert torch.equal(got.scores, expected.scores)
        assert torch.equal(got.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(got.pred_classes, expected.pred_classes)


def test_clip_sees_the_boxes_that_enter_each_stage(make_cascade, features, proposals) -> None:
    heads = make_cascade()
    seen = []
    for predictor in heads.box_predictor:
        plain = predictor.predict_probs

        def record(predictions, items, plain=plain):
            seen.append([(i.proposal_boxes.tensor, i.get(CLIP_FIELD)) for i in items])
            return plain(predictions, items)

        predictor.predict_probs = record
    given = proposals(4, 2)
    detect(heads, features, given)
    (first_boxes, first), (second_boxes, second) = seen[0][0], seen[1][0]
    assert torch.equal(first_boxes, given[0].proposal_boxes.tensor)
    assert not torch.allclose(first_boxes, second_boxes)
    assert not torch.allclose(first, second)
    assert not given[0].has(CLIP_FIELD)


def test_scores_come_back_with_the_vocabulary(
    make_cascade, features, proposals, pets: TextEmbeddings, tools: TextEmbeddings
) -> None:
    heads = make_cascade("MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0)

    def scores() -> Tensor:
        return detect(heads, features, proposals(5, 5))[0].scores

    before = scores()
    with use_vocabulary(heads, tools):
        classes = detect(heads, features, proposals(5, 5))[0].pred_classes
        other = scores()
    assert {stage.classifier.num_classes for stage in heads.box_predictor} == {5}
    assert set(classes.tolist()) <= {0, 1, 2}
    assert len(other) == 5 * 3
    assert len(before) == 5 * 5
    assert torch.equal(scores(), before)
    with use_vocabulary(heads, pets):
        assert torch.equal(scores(), before)


def test_every_stage_learns_with_a_scale_of_its_own(
    make_cascade, features, proposals, targets
) -> None:
    heads = make_cascade().train()
    with EventStorage():
        _, losses = heads(None, features, proposals(8, 8), targets([0, 1], [3]))
    assert set(losses) == {
        f"{name}_stage{k}" for name in ("loss_cls", "loss_box_reg") for k in range(2)
    }
    sum(losses.values()).backward()
    scales = [stage.classifier.scale for stage in heads.box_predictor]
    assert scales[0] is not scales[1]
    assert all(p.grad is not None and p.grad.isfinite() for p in scales)
    assert all(p.grad is not None for p in heads.parameters())


def test_a_novel_box_in_training_is_refused(make_cascade, features, proposals, targets) -> None:
    heads = make_cascade().train()
    with EventStorage(), pytest.raises(ValueError, match="novel class number 2"):
        heads(None, features, proposals(8, 8), targets([2], []))


def test_no_proposals_give_no_detections(make_cascade, features, proposals) -> None:
    assert [len(item) for item in detect(make_cascade(), features, proposals(0, 0))] == [0, 0]


def test_masks_of_each_class_are_refused(make_cascade) -> None:
    with pytest.raises(ValueError, match="masks of each"):
        make_cascade("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False)


def test_a_backbone_without_the_dense_map_is_refused(heads_cfg, input_shape) -> None:
    del input_shape["clip"]
    with pytest.raises(ValueError, match="OpenVocabCascadeROIHeads needs a backbone"):
        OpenVocabCascadeROIHeads(heads_cfg, input_shape)


def test_text_of_another_width_is_refused(heads_cfg, input_shape) -> None:
    heads_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    input_shape["clip"] = ShapeSpec(channels=9, stride=8)
    with pytest.raises(ValueError, match="8-d but the tower projects to 9-d"):
        OpenVocabCascadeROIHeads(heads_cfg, input_shape)
