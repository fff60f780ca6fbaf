"""CLIP's last stage and attention pool on regions: golden values, sharing, masks."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from clipself_d2.backbones.clip_resnet import ClipResNet
from clipself_d2.config import add_clipself_config
from clipself_d2.detection.res5_heads import CLIPRes5ROIHeads
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

DATASET = "res5_pets"
NAMES = ["cat", "dog", "owl", "cow", "fox", "hen", "pig", "rat", "bat"]
SHAPE = {"res4": ShapeSpec(channels=64, stride=16)}


@pytest.fixture
def cfg(kit, tmp_path):
    """Config of heads with the golden test vocabulary, of which the last three are novel."""
    rows = torch.nn.functional.normalize(kit.pt("roi_head_e2e")["test_emb"], dim=1)
    vocabulary = Vocabulary.from_names(NAMES, novel=NAMES[6:])
    TextEmbeddings(vocabulary, rows, None, "RN50-quickgelu", "single", "").save(tmp_path / "e.pt")
    MetadataCatalog.get(DATASET).set(thing_classes=NAMES, novel_classes=NAMES[6:])
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.DATASETS.TRAIN = (DATASET,)
    cfg.MODEL.CLIP.NAME = "RN50-quickgelu"
    cfg.MODEL.VOCABULARY.EMBEDDINGS = str(tmp_path / "e.pt")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.001
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.OPEN_VOCAB.BACKGROUND = "zero"
    cfg.MODEL.OPEN_VOCAB.SCALE = 20.0
    cfg.MODEL.OPEN_VOCAB.LEARN_SCALE = False
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    yield cfg
    MetadataCatalog.remove(DATASET)


def build(cfg: CfgNode, kit: SimpleNamespace) -> tuple[ClipResNet, CLIPRes5ROIHeads]:
    """Golden backbone and heads with the golden regressor."""
    golden = kit.pt("roi_head_e2e")
    backbone = ClipResNet(tower=kit.tower()).eval()
    heads = CLIPRes5ROIHeads(cfg, SHAPE, tower=backbone.tower).eval()
    with torch.no_grad():
        heads.box_predictor.bbox_pred.weight.copy_(golden["bbox_w"])
        heads.box_predictor.bbox_pred.bias.copy_(golden["bbox_b"])
    return backbone, heads


def regions(kit: SimpleNamespace) -> list[Boxes]:
    golden = kit.pt("backbone_roi")
    return [Boxes(golden["boxes0"]), Boxes(golden["boxes1"])]


def propose(kit: SimpleNamespace) -> list[Instances]:
    return [
        Instances((96, 128), proposal_boxes=boxes, objectness_logits=torch.zeros(len(boxes)))
        for boxes in regions(kit)
    ]


def label(proposals: list[Instances], classes: int = 2) -> list[Instances]:
    targets = []
    for item in proposals:
        masks = BitMasks(torch.ones(classes, 96, 128, dtype=torch.bool))
        fields = {"gt_boxes": item.proposal_boxes[:classes], "gt_masks": masks}
        targets.append(Instances((96, 128), gt_classes=torch.arange(classes), **fields))
    return targets


def test_regions_are_those_of_the_published_code(cfg, kit) -> None:
    golden = kit.pt("backbone_roi")
    backbone, heads = build(cfg, kit)
    features = backbone(golden["image"])
    pooled = heads.pooler([features["res4"]], regions(kit))
    torch.testing.assert_close(pooled, golden["roi_pooled"], rtol=1e-5, atol=1e-5)
    maps = heads.region_maps(features, regions(kit))
    torch.testing.assert_close(maps, golden["roi_layer4"], rtol=1e-5, atol=1e-5)
    embedded = heads.tower.pool(maps)
    torch.testing.assert_close(embedded, golden["roi_attnpool"], rtol=1e-5, atol=1e-5)


def test_detections_are_those_of_the_published_code(cfg, kit) -> None:
    backbone, heads = build(cfg, kit)
    with torch.no_grad():
        found, losses = heads(None, backbone(kit.pt("backbone_roi")["image"]), propose(kit))
    assert losses == {}
    for own, golden in zip(found, kit.pt("roi_head_e2e")["out"], strict=True):
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(own.pred_boxes.tensor, golden["boxes"], **close)
        torch.testing.assert_close(own.scores, golden["scores"], **close)
        assert torch.equal(own.pred_classes, golden["classes"])


def test_training_reaches_last_stage_and_pool_through_the_backbone(cfg, kit) -> None:
    backbone, heads = build(cfg, kit)
    backbone.train()
    heads.train()
    assert not [name for name, _ in heads.named_parameters() if "visual" in name]
    with EventStorage():
        _, losses = heads(
            None, backbone(kit.pt("backbone_roi")["image"]), propose(kit), label(propose(kit))
        )
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert heads.box_predictor.bbox_pred.weight.grad.abs().sum() > 0


def test_the_heads_train_a_pool_that_the_backbone_left_frozen(cfg, kit) -> None:
    backbone = ClipResNet(tower=kit.tower(), trainable_blocks=3, train_pool=False)
    pool = backbone.tower.visual.attnpool
    assert not any(parameter.requires_grad for parameter in pool.parameters())
    CLIPRes5ROIHeads(cfg, SHAPE, tower=backbone.tower)
    assert all(parameter.requires_grad for parameter in pool.parameters())


def test_masks_come_from_the_last_stage(cfg, kit) -> None:
    cfg.MODEL.MASK_ON = True
    backbone, heads = build(cfg, kit)
    shapes = {name: tuple(value.shape) for name, value in heads.mask_head.state_dict().items()}
    assert shapes == {
        "deconv.weight": (128, 8, 2, 2),
        "deconv.bias": (8,),
        "predictor.weight": (1, 8, 1, 1),
        "predictor.bias": (1,),
    }
    features = backbone(kit.pt("backbone_roi")["image"])
    found, _ = heads(None, features, propose(kit))
    assert found[0].pred_masks.shape == (len(found[0]), 1, 4, 4)
    heads.train()
    with EventStorage():
        _, losses = heads(None, features, propose(kit), label(propose(kit)))
    assert losses["loss_mask"].item() > 0


def test_mask_head_takes_part_without_an_object(cfg, kit) -> None:
    cfg.MODEL.MASK_ON = True
    backbone, heads = build(cfg, kit)
    heads.train()
    features = backbone(kit.pt("backbone_roi")["image"])
    with EventStorage():
        _, losses = heads(None, features, propose(kit), label(propose(kit), classes=0))
    losses["loss_mask"].backward()
    assert losses["loss_mask"].item() == 0.0
    assert heads.mask_head.deconv.weight.grad is not None


def test_no_proposals_give_no_detections(cfg, kit) -> None:
    backbone, heads = build(cfg, kit)
    empty = [Instances((96, 128), proposal_boxes=Boxes(torch.zeros(0, 4))) for _ in range(2)]
    found, _ = heads(None, backbone(kit.pt("backbone_roi")["image"]), empty)
    assert [len(item) for item in found] == [0, 0]


def test_bad_settings_name_their_keys(cfg, kit) -> None:
    tower = kit.tower()
    with pytest.raises(ValueError, match="OfflineProposalRCNN"):
        CLIPRes5ROIHeads(cfg, SHAPE)
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    with pytest.raises(ValueError, match=r"POOLER_RESOLUTION is 14.*set it to 4"):
        CLIPRes5ROIHeads(cfg, SHAPE, tower=tower)
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4", "res5"]
    with pytest.raises(ValueError, match="IN_FEATURES"):
        CLIPRes5ROIHeads(cfg, {**SHAPE, "res5": ShapeSpec(channels=128, stride=32)}, tower=tower)
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.MASK_ON, cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True, False
    with pytest.raises(ValueError, match="CLS_AGNOSTIC_MASK"):
        CLIPRes5ROIHeads(cfg, SHAPE, tower=tower)
