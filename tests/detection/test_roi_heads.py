"""Heads from features and proposals to losses and detections."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from clipself_d2.backbones import build_clip_vit_fpn_backbone
from clipself_d2.detection import OpenVocabROIHeads
from clipself_d2.layers import fuse_scores, roi_embeddings
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

MakeHeads = Callable[..., OpenVocabROIHeads]
Features = dict[str, Tensor]
MakeInstances = Callable[..., list[Instances]]
IMAGES = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (64, 96)])


def detect(heads: OpenVocabROIHeads, features: Features, given: list[Instances]) -> list[Instances]:
    with torch.no_grad():
        found, losses = heads(IMAGES, features, given)
    assert losses == {}
    return found


def same(one: list[Instances], other: list[Instances]) -> bool:
    return all(
        torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
        and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        for a, b in zip(one, other, strict=True)
    )


def test_registry_builds_heads_of_the_vocabulary(
    heads_cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> None:
    heads = build_roi_heads(heads_cfg, input_shape)
    assert isinstance(heads, OpenVocabROIHeads)
    assert heads.num_classes == heads.box_predictor.num_classes == 5
    assert heads.clip_stride == 8


def test_detections_are_fused_at_the_proposals_and_boxed_by_the_detector(
    make_heads: MakeHeads, features: Features, proposals: MakeInstances, pets: TextEmbeddings
) -> None:
    heads = make_heads(
        "MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA", 0.3, "MODEL.OPEN_VOCAB.ENSEMBLE_BETA", 0.7
    )
    given = proposals(6, 4)
    found = detect(heads, features, given)

    boxes = [item.proposal_boxes for item in given]
    with torch.no_grad():
        levels = [features[name] for name in heads.in_features]
        logits, deltas = heads.box_predictor(heads.box_head(heads.box_pooler(levels, boxes)))
        refined = heads.box_predictor.predict_boxes((logits, deltas), given)
    texts = torch.cat([pets.embeddings_KD, pets.background_D[None]])
    region = roi_embeddings(features["clip"], [box.tensor for box in boxes], 8.0)
    clip = (75 * region @ texts.T).softmax(1)
    fused = fuse_scores(logits.softmax(1), clip, torch.tensor(pets.vocabulary.base_mask), 0.3, 0.7)
    expected, _ = fast_rcnn_inference(refined, fused.split([6, 4]), [(64, 96)] * 2, 0.0, 0.5, 100)
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got.pred_classes, want.pred_classes)
        torch.testing.assert_close(got.scores, want.scores)
        torch.testing.assert_close(got.pred_boxes.tensor, want.pred_boxes.tensor)
    moved = (torch.cat(list(refined)) - torch.cat([box.tensor for box in boxes])).abs().max(1)
    assert moved.values.min() > 1, "the refined boxes must differ for this test to tell"


def test_exponents_0_are_the_detector_whatever_clip_sees(
    make_heads: MakeHeads, features: Features, proposals: MakeInstances
) -> None:
    heads = make_heads(
        "MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA", 0.0, "MODEL.OPEN_VOCAB.ENSEMBLE_BETA", 0.0
    )
    other = {**features, "clip": features["clip"].flip(1)}
    given = proposals(6, 4)
    assert same(detect(heads, features, given), detect(heads, other, given))


def test_exponents_1_are_clip_at_the_box_of_a_proposal(
    make_heads: MakeHeads, features: Features, pets: TextEmbeddings
) -> None:
    heads = make_heads(
        "MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA", 1.0, "MODEL.OPEN_VOCAB.ENSEMBLE_BETA", 1.0
    )
    novel = pets.vocabulary.names.index("owl")
    # Cells of 8 px: the map says owl over rows 2 to 5 and columns 3 to 6 of the first image.
    dense = features["clip"].clone()
    dense[0, :, 2:6, 3:7] = pets.embeddings_KD[novel][:, None, None]
    box = Boxes(torch.tensor([[24.0, 16.0, 56.0, 48.0]]))
    empty = Boxes(torch.zeros(0, 4))
    given = [Instances((64, 96), proposal_boxes=boxes) for boxes in (box, empty)]
    found = detect(heads, {**features, "clip": dense}, given)
    texts = torch.cat([pets.embeddings_KD, pets.background_D[None]])
    expected = (75 * texts @ pets.embeddings_KD[novel]).softmax(0)[novel]
    assert found[0].pred_classes[0] == novel
    torch.testing.assert_close(found[0].scores[0], expected)
    assert len(found[1]) == 0


def test_custom_words_are_fused_with_alpha(
    make_heads: MakeHeads, features: Features, proposals: MakeInstances, tools: TextEmbeddings
) -> None:
    given = proposals(6, 4)
    results = []
    for beta in (0.0, 1.0):
        heads = make_heads(
            "MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA", 0.2, "MODEL.OPEN_VOCAB.ENSEMBLE_BETA", beta
        )
        with use_vocabulary(heads, tools):
            results.append(detect(heads, features, given))
    assert same(*results)


def test_vocabulary_a_b_a_gives_identical_detections(
    make_heads: MakeHeads,
    features: Features,
    proposals: MakeInstances,
    tools: TextEmbeddings,
) -> None:
    heads = make_heads("MODEL.MASK_ON", True)
    given = proposals(6, 4)
    before = detect(heads, features, given)
    assert max(int(item.pred_classes.max()) for item in before) == 4
    with use_vocabulary(heads, tools):
        between = detect(heads, features, given)
        assert max(int(item.pred_classes.max()) for item in between) == 2
    after = detect(heads, features, given)
    assert not torch.equal(between[0].scores, before[0].scores)
    assert same(before, after)
    assert torch.equal(before[0].pred_masks, after[0].pred_masks)


def test_vocabulary_may_grow(
    make_heads: MakeHeads, features: Features, proposals: MakeInstances
) -> None:
    heads = make_heads("MODEL.MASK_ON", True)
    rows = F.normalize(torch.randn(41, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    names = Vocabulary.from_names([f"word {index}" for index in range(40)])
    many = TextEmbeddings(names, rows[:-1], rows[-1], "ViT-Ti-8-emoji", "emoji")
    with use_vocabulary(heads, many):
        found = detect(heads, features, proposals(6, 4))
    assert max(int(item.pred_classes.max()) for item in found) > 5
    assert found[0].pred_masks.shape[1:] == (1, 8, 8)


def test_callers_proposals_are_not_changed(
    make_heads: MakeHeads, features: Features, proposals: MakeInstances
) -> None:
    given = proposals(6, 4)
    detect(make_heads(), features, given)
    for item, fresh in zip(given, proposals(6, 4), strict=True):
        assert set(item.get_fields()) == set(fresh.get_fields())
        assert torch.equal(item.proposal_boxes.tensor, fresh.proposal_boxes.tensor)


@pytest.mark.parametrize("mask_on", [False, True])
@pytest.mark.parametrize("counts", [(0, 0), (0, 4)])
def test_images_without_proposals_have_no_detections(
    counts: tuple[int, int],
    mask_on: bool,
    make_heads: MakeHeads,
    features: Features,
    proposals: MakeInstances,
) -> None:
    found = detect(make_heads("MODEL.MASK_ON", mask_on), features, proposals(*counts))
    assert len(found[0]) == 0
    assert (len(found[1]) > 0) == (counts[1] > 0)
    assert all(item.has("pred_masks") == mask_on for item in found)


@pytest.mark.parametrize("mask_on", [False, True])
def test_training_needs_no_clip_map(
    mask_on: bool,
    make_heads: MakeHeads,
    features: Features,
    proposals: MakeInstances,
    targets: MakeInstances,
) -> None:
    heads = make_heads("MODEL.MASK_ON", mask_on).train()
    del features["clip"]
    with EventStorage():
        _, losses = heads(IMAGES, features, proposals(8, 8), targets([0, 3], [1]))
    expected = {"loss_cls", "loss_box_reg"} | ({"loss_mask"} if mask_on else set())
    assert set(losses) == expected
    sum(losses.values()).backward()
    still = [name for name, p in heads.named_parameters() if p.grad is None]
    assert still == []


@pytest.mark.parametrize("norm", ["", "SyncBN", "LN"])
def test_images_without_objects_train(
    norm: str,
    make_heads: MakeHeads,
    features: Features,
    proposals: MakeInstances,
    targets: MakeInstances,
) -> None:
    heads = make_heads("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NORM", norm).train()
    with EventStorage():
        _, losses = heads(IMAGES, features, proposals(8, 0), targets([], []))
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_cls"] > 0
    assert losses["loss_box_reg"] == losses["loss_mask"] == 0
    # Other processes wait for the gradient of every parameter.
    sum(losses.values()).backward()
    assert [name for name, p in heads.named_parameters() if p.grad is None] == []


def test_one_object_trains_the_mask_head_as_detectron2_does(
    make_heads: MakeHeads, features: Features, proposals: MakeInstances, targets: MakeInstances
) -> None:
    heads = make_heads("MODEL.MASK_ON", True).train()
    with EventStorage():
        given = heads.label_and_sample_proposals(proposals(8, 8), targets([3], []))
        ours = heads._forward_mask(features, given)
        theirs = StandardROIHeads._forward_mask(heads, features, given)
    assert ours["loss_mask"] == theirs["loss_mask"] > 0


def test_training_box_of_a_novel_class_is_refused(
    make_heads: MakeHeads, features: Features, proposals: MakeInstances, targets: MakeInstances
) -> None:
    heads = make_heads().train()
    with EventStorage(), pytest.raises(ValueError, match="novel class number 2.*not base-only"):
        heads(IMAGES, features, proposals(8, 8), targets([0, 2], [1]))


def test_checkpoint_holds_no_text_embeddings(make_heads: MakeHeads, tools: TextEmbeddings) -> None:
    heads = make_heads()
    state = heads.state_dict()
    shapes = {tuple(value.shape) for value in state.values()}
    assert (5, 8) not in shapes
    assert "box_predictor.cls_score.2.scale" in state
    with use_vocabulary(heads, tools):
        assert set(heads.state_dict()) == set(state)
        heads.load_state_dict(state)


def test_box_deltas_are_class_agnostic_whatever_the_key_says(make_heads: MakeHeads) -> None:
    heads = make_heads("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False)
    assert heads.box_predictor.bbox_pred[-1].out_features == 4


def test_masks_by_class_are_refused(make_heads: MakeHeads) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.ROI_MASK_HEAD\.CLS_AGNOSTIC_MASK to True"):
        make_heads("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False)


def test_backbone_without_clip_is_refused(
    heads_cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> None:
    del input_shape["clip"]
    with pytest.raises(ValueError, match=r"feature 'clip'.*MODEL\.BACKBONE\.NAME"):
        OpenVocabROIHeads(heads_cfg, input_shape)


def test_text_embeddings_of_another_width_are_refused(
    heads_cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> None:
    input_shape["clip"] = ShapeSpec(channels=512, stride=8)
    with pytest.raises(ValueError, match=r"8-d but the tower projects to 512-d.*MODEL\.CLIP\.NAME"):
        OpenVocabROIHeads(heads_cfg, input_shape)


def test_detector_on_the_clip_pyramid_trains_and_switches_classes(
    heads_cfg: CfgNode, targets: MakeInstances
) -> None:
    cfg = heads_cfg
    cfg.merge_from_list(
        ["MODEL.CLIP.PRETRAINED", "", "MODEL.VOCABULARY.EMBEDDINGS", "", "MODEL.FPN.NORM", ""]
        + [
            "MODEL.FPN.OUT_CHANNELS",
            8,
            "MODEL.RPN.IN_FEATURES",
            ["p2", "p3", "p4", "p5", "p6"],
        ]
        + ["MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [48], [64]], "INPUT.FORMAT", "RGB"]
        + ["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20]
    )
    torch.manual_seed(0)
    backbone = build_clip_vit_fpn_backbone(cfg, ShapeSpec(channels=3))
    shape = backbone.output_shape()
    model = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=build_proposal_generator(cfg, shape),
        roi_heads=build_roi_heads(cfg, shape),
        pixel_mean=(122.8, 116.7, 104.1),
        pixel_std=(68.5, 66.6, 70.3),
    )
    image = torch.randint(0, 255, (3, 64, 96), generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image, "height": 64, "width": 96, "instances": targets([0, 3])[0]}]
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    still = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []
    assert not any(p.requires_grad for p in backbone.bottom_up.tower.parameters())

    model.eval()
    width = shape["clip"].channels
    rows = F.normalize(torch.randn(3, width, generator=torch.Generator().manual_seed(1)), dim=1)
    words = Vocabulary.from_names(["saw", "axe"])
    other = TextEmbeddings(words, rows[:-1], rows[-1], "ViT-Ti-8-emoji", "emoji")
    with torch.no_grad():
        before = model(inputs)[0]["instances"]
        with use_vocabulary(model, other):
            between = model(inputs)[0]["instances"]
        after = model(inputs)[0]["instances"]
    assert len(before) > 0
    assert int(between.pred_classes.max()) < 2
    assert same([before], [after])
