"""The detector on offline proposals: its sources of boxes, its checkpoints, and the recipes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from clipself_d2.clip.weights.layouts import to_open_clip
from clipself_d2.data.build import build_detection_train_loader_from_cfg
from clipself_d2.detection.offline_proposals import AnnotatedBoxes, OfflineProposalRCNN
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer
from clipself_d2.parts import image_tower
from clipself_d2.parts.text_embeddings import dataset_vocabulary
from clipself_d2.runs.checkpointer import StrictCheckpointer
from clipself_d2.vocabulary import TextEmbeddings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "regionclip"
NAMES = [
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.stem.startswith(("transfer_", "zeroshot_", "focal_"))
]
# Those of other towers differ in keys that the tiny tower overrides.
RECIPES = [
    name if "x4" not in name and "clip" not in name else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]
RPN = "configs/emoji/rpn.yaml"
NONE = ("DATASETS.TEST", ("emoji_ov_val",), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)


@pytest.fixture
def resnet_cfg(emoji_cfg, kit, monkeypatch, tmp_path):
    """Function from a recipe of configs/regionclip to one with the golden tower on emoji scenes."""
    monkeypatch.setattr(image_tower, "load_tower", lambda *_, **__: kit.tower())

    def read(name: str, *overrides: object) -> CfgNode:
        cfg = load_config(str(FOLDER / f"{name}.yaml"), [])
        scenes = "emoji_lvis" if cfg.MODEL.MASK_ON else "emoji_ov"
        vocabulary = dataset_vocabulary(f"{scenes}_train")
        rows = nn.functional.normalize(torch.randn(vocabulary.num_classes, 32), dim=1)
        path = tmp_path / "text.pt"
        TextEmbeddings(vocabulary, rows, None, cfg.MODEL.CLIP.NAME, "single", "").save(path)
        (tmp_path / "rpn.yaml").write_text(
            "MODEL: {DEVICE: cpu, META_ARCHITECTURE: ProposalNetwork, RESNETS: {DEPTH: 50, "
            "WIDTH_PER_GROUP: 4, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}, RPN: "
            "{POST_NMS_TOPK_TEST: 20}}\nVERSION: 2\n"
        )
        cfg.merge_from_list(
            ["MODEL.DEVICE", "cpu", "MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.WEIGHTS", ""]
            + ["MODEL.VOCABULARY.EMBEDDINGS", str(path), "MODEL.VOCABULARY.CACHE_DIR", ""]
            + ["MODEL.FROZEN_RPN.CONFIG", str(tmp_path / "rpn.yaml")]
            + ["MODEL.FROZEN_RPN.WEIGHTS", "", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4]
            + ["DATASETS.TRAIN", (f"{scenes}_train",), "DATASETS.TEST", (f"{scenes}_val",)]
            + [
                "INPUT.MIN_SIZE_TRAIN",
                (96,),
                "INPUT.MIN_SIZE_TEST",
                96,
                "DATALOADER.NUM_WORKERS",
                0,
            ]
            + ["SOLVER.IMS_PER_BATCH", 2, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16]
            + ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *overrides]
        )
        return cfg

    return read


def detect(cfg: CfgNode, model: nn.Module) -> tuple[list[dict], list[dict]]:
    inputs = next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], batch_size=2)))
    with torch.no_grad():
        return inputs, model.eval()(inputs)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_and_detects(resnet_cfg, name) -> None:
    cfg = resnet_cfg(name)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg).train()
    assert isinstance(model, OfflineProposalRCNN)
    assert cfg.MODEL.OPEN_VOCAB.BACKGROUND == "zero"
    optimizer = Trainer.build_optimizer(cfg, model)
    with EventStorage():
        losses = model(next(iter(build_detection_train_loader_from_cfg(cfg))))
    masks = {"loss_mask"} if cfg.MODEL.MASK_ON else set()
    assert set(losses) == {"loss_cls", "loss_box_reg"} | masks
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    optimizer.step()
    _, found = detect(cfg, model)
    assert all(item["instances"].has("pred_masks") == cfg.MODEL.MASK_ON for item in found)
    assert any(len(item["instances"]) for item in found) or cfg.MODEL.OPEN_VOCAB.RPN_SCORE


def test_zero_shot_keeps_the_annotated_boxes(emoji_cfg) -> None:
    cfg = emoji_cfg("regionclip_zeroshot_gt", *NONE)
    inputs, found = detect(cfg, build_model(cfg))
    records = {record["file_name"]: record for record in DatasetCatalog.get("emoji_ov_val")}
    for sample, item in zip(inputs, found, strict=True):
        truth = torch.tensor(
            [
                BoxMode.convert(note["bbox"], note["bbox_mode"], BoxMode.XYXY_ABS)
                for note in records[sample["file_name"]]["annotations"]
            ]
        )
        boxes = item["instances"].pred_boxes.tensor
        nearest = (boxes[:, None] - truth[None]).abs().amax(dim=2).amin(dim=1)
        assert len(boxes)
        assert nearest.max() < 0.01


@pytest.mark.parametrize(
    ("scenes", "metrics"),
    [("emoji_ov", {"AP50-novel", "AP50-base", "AP50-all"}), ("emoji_lvis", {"APr", "APc", "APf"})],
)
@pytest.mark.parametrize("boxes", ["gt", "rpn"])
def test_zero_shot_is_scored_by_both_protocols(emoji_cfg, boxes, scenes, metrics) -> None:
    cfg = emoji_cfg(
        f"regionclip_zeroshot_{boxes}",
        *("MODEL.FROZEN_RPN.CONFIG", str(ROOT / RPN), "MODEL.FROZEN_RPN.WEIGHTS", ""),
        *("DATASETS.TRAIN", (f"{scenes}_train",), "DATASETS.TEST", (f"{scenes}_val",)),
    )
    torch.manual_seed(0)
    scores = Trainer.test(cfg, build_model(cfg).eval())["bbox"]
    assert metrics <= set(scores)
    # A metric without any object is NaN.
    known = [scores[name] for name in metrics if scores[name] == scores[name]]
    assert known
    assert all(0 <= score <= 100 for score in known)


def test_zero_shot_scores_are_those_of_the_clip_alone(emoji_cfg) -> None:
    """No weight of the detector's heads moves them."""
    cfg = emoji_cfg("regionclip_zeroshot_gt", *NONE)
    torch.manual_seed(0)
    model = build_model(cfg)
    _, before = detect(cfg, model)
    with torch.no_grad():
        for parameter in model.roi_heads.parameters():
            parameter.normal_()
    _, after = detect(cfg, model)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["instances"].scores, other["instances"].scores)
        assert torch.equal(one["instances"].pred_classes, other["instances"].pred_classes)


def test_offline_rpn_proposes_and_is_part_of_the_checkpoint(emoji_cfg, tmp_path) -> None:
    overrides = ["MODEL.FROZEN_RPN.CONFIG", str(ROOT / RPN)]
    overrides += ["MODEL.FROZEN_RPN.WEIGHTS", str(tmp_path / "rpn.pth")]
    source = build_model(emoji_cfg("rpn"))
    torch.save({"model": source.state_dict()}, tmp_path / "rpn.pth")
    cfg = emoji_cfg("regionclip_zeroshot_rpn", *NONE, *overrides)
    model = build_model(cfg)
    own = model.state_dict()
    for key, value in source.state_dict().items():
        assert torch.equal(own[f"offline_rpn.{key}"], value), key
    inputs, _ = detect(cfg, model)
    proposed = model._propose(inputs)[0]["proposals"]
    assert proposed.image_size == inputs[0]["image"].shape[1:]
    assert "proposals" not in inputs[0]


def test_transfer_trains_heads_and_not_the_rpn(emoji_cfg) -> None:
    rpn = ("MODEL.FROZEN_RPN.CONFIG", str(ROOT / RPN), "MODEL.FROZEN_RPN.WEIGHTS", "")
    cfg = emoji_cfg("regionclip_transfer", "MODEL.CLIP.WEIGHTS", "", *rpn)
    model = build_model(cfg).train()
    assert not model.offline_rpn.training
    with EventStorage():
        losses = model(next(iter(build_detection_train_loader_from_cfg(cfg))))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is None for p in model.offline_rpn.parameters())
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert not [name for name in trained if name.startswith("offline_rpn")]


def shuffled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


def test_published_checkpoint_without_an_rpn_leaves_its_statistics(resnet_cfg, tmp_path) -> None:
    """Detectron2's frozen norms would set them to zero and one."""
    torch.manual_seed(0)
    rpn = build_model(resnet_cfg("transfer_coco_rn50")).offline_rpn
    torch.save({"model": rpn.state_dict()}, tmp_path / "rpn.pth")
    key = "MODEL.FROZEN_RPN.WEIGHTS"
    model = build_model(resnet_cfg("transfer_coco_rn50", key, str(tmp_path / "rpn.pth")))
    for key, value in model.offline_rpn.named_buffers():
        if "running" in key:
            value.uniform_(0.5, 1.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tower = {k.removeprefix("backbone.tower.visual."): v for k, v in before.items() if "tower" in k}
    tower = {f"backbone.{k}": v for k, v in shuffled(tower).items() if "tracked" not in k}
    path = tmp_path / "published.pth"
    torch.save({"model": {**tower, "logit_scale": torch.tensor(4.6)}}, path)
    StrictCheckpointer(model, str(tmp_path)).load(str(path))
    for key, value in model.state_dict().items():
        theirs = key.replace("backbone.tower.visual.", "backbone.")
        is_tower = key.startswith("backbone.") and theirs in tower
        assert torch.equal(value, tower[theirs] if is_tower else before[key]), key


@pytest.mark.parametrize("is_published", [True, False])
def test_a_random_rpn_is_refused(resnet_cfg, tmp_path, is_published) -> None:
    model = build_model(resnet_cfg("transfer_coco_rn50"))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("offline_rpn.")}
    if is_published:
        state = {k.replace("backbone.tower.visual.", "backbone."): v for k, v in state.items()}
    torch.save({"model": state}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"no offline RPN and MODEL\.FROZEN_RPN\.WEIGHTS is empty"):
        StrictCheckpointer(model, str(tmp_path)).load(str(tmp_path / "half.pth"))


def test_texts_of_a_published_checkpoint_do_not_replace_the_vocabulary(
    resnet_cfg, tmp_path
) -> None:
    """Not even those of as many classes; the number of classes is the vocabulary's."""
    torch.manual_seed(0)
    model = build_model(resnet_cfg("transfer_coco_rn50", "MODEL.ROI_HEADS.NUM_CLASSES", 3))
    predictor = model.roi_heads.box_predictor
    before = predictor.classifier.embeddings_KD.clone()
    assert model.roi_heads.num_classes == predictor.num_classes == len(before) > 3
    state = {
        k.replace("backbone.tower.visual.", "backbone."): v
        for k, v in model.state_dict().items()
        if k.startswith(("backbone.", "roi_heads.")) and "tracked" not in k
    }
    for key, value in model.offline_rpn.state_dict().items():
        if "anchor_generator" not in key:
            state[f"offline_{key}"] = value
    for name, rows in (("cls_score", len(before)), ("cls_bg_score", 1), ("test_cls_score", 65)):
        state[f"roi_heads.box_predictor.{name}.weight"] = torch.rand(rows, before.shape[1])
    torch.save({"model": state}, tmp_path / "published.pth")
    StrictCheckpointer(model, str(tmp_path)).load(str(tmp_path / "published.pth"))
    assert torch.equal(predictor.classifier.embeddings_KD, before)
    assert not [key for key in model.state_dict() if "embeddings_KD" in key]


def test_own_checkpoint_comes_back_and_gives_its_tower(resnet_cfg, tmp_path) -> None:
    torch.manual_seed(0)
    cfg = resnet_cfg("transfer_coco_rn50")
    model = build_model(cfg)
    state = shuffled(model.state_dict())
    torch.save({"model": state}, tmp_path / "own.pth")
    StrictCheckpointer(model, str(tmp_path)).load(str(tmp_path / "own.pth"))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    named = to_open_clip(state)
    assert set(named.tensors) == set(model.backbone.tower.state_dict())


def test_rpn_of_its_own_is_trained_with_the_detector(resnet_cfg) -> None:
    cfg = resnet_cfg("transfer_coco_rn50", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN")
    model = build_model(cfg).train()
    assert model.offline_rpn is None
    with EventStorage():
        losses = model(next(iter(build_detection_train_loader_from_cfg(cfg))))
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_cls"} <= set(losses)


def test_annotated_boxes_serve_training_too(resnet_cfg) -> None:
    cfg = resnet_cfg("zeroshot_coco_gt_rn50")
    model = build_model(cfg).train()
    batch = next(iter(build_detection_train_loader_from_cfg(cfg)))
    with EventStorage():
        assert all(loss.isfinite() for loss in model(batch).values())


def test_bad_settings_name_their_keys(resnet_cfg) -> None:
    cfg = resnet_cfg("transfer_coco_rn50", "MODEL.BACKBONE.NAME", "build_resnet_backbone")
    with pytest.raises(ValueError, match="needs MODEL.BACKBONE.NAME build_clip_resnet_backbone"):
        build_model(cfg)
    with pytest.raises(ValueError, match="INPUT.FORMAT is BGR"):
        build_model(resnet_cfg("transfer_coco_rn50", "INPUT.FORMAT", "BGR"))


def test_annotated_boxes_have_no_objectness(emoji_cfg) -> None:
    cfg = emoji_cfg("regionclip_zeroshot_gt", "MODEL.OPEN_VOCAB.RPN_SCORE", "sigmoid", *NONE)
    with pytest.raises(ValueError, match="RPN_SCORE needs"):
        detect(cfg, build_model(cfg))


DATASET = "annotated_boxes_pets"


@pytest.fixture
def annotated_pets() -> Iterator[None]:
    def box(*values: float, crowd: int = 0) -> dict[str, object]:
        return {"bbox": list(values), "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": crowd}

    records = [
        {"file_name": "a.jpg", "annotations": [box(10, 20, 30, 40), box(0, 0, 5, 5, crowd=1)]},
        {"file_name": "b.jpg", "annotations": []},
    ]
    DatasetCatalog.register(DATASET, lambda: records)
    yield
    DatasetCatalog.remove(DATASET)


def sample(name: str) -> dict[str, object]:
    """A test sample of a picture of 100 x 50 px (w x h), resized to twice its side."""
    return {"file_name": name, "image": torch.zeros(3, 100, 200), "height": 50, "width": 100}


def test_test_boxes_are_scaled_and_crowds_left_out(annotated_pets) -> None:
    found = AnnotatedBoxes([DATASET])([sample("a.jpg"), sample("b.jpg")])
    assert found[0].proposal_boxes.tensor.tolist() == [[20.0, 40.0, 80.0, 120.0]]
    assert found[0].image_size == (100, 200)
    assert not found[0].has("objectness_logits")
    assert found[1].proposal_boxes.tensor.shape == (0, 4)


def test_training_boxes_are_those_of_the_mapped_sample() -> None:
    """No test set is read for them."""
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    instances = Instances((100, 200), gt_boxes=Boxes(boxes))
    (found,) = AnnotatedBoxes(["none_of_that_name"])(
        [{**sample("unknown.jpg"), "instances": instances}]
    )
    assert torch.equal(found.proposal_boxes.tensor, boxes)
    assert found.objectness_logits.tolist() == [0.0]
    found.proposal_boxes.tensor.zero_()
    assert torch.equal(instances.gt_boxes.tensor, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))


def test_picture_of_another_set_is_refused(annotated_pets) -> None:
    with pytest.raises(ValueError, match=r"c\.jpg.*DATASETS\.TEST"):
        AnnotatedBoxes([DATASET])([sample("c.jpg")])
