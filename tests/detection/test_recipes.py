"""Every published detector recipe: its numbers, and a step and a detection with a small tower."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage
from torch import nn

from clipself_d2.data.build import build_detection_train_loader_from_cfg
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = ("coco_ov", "lvis_ov", "transfer")
RECIPES = [path for folder in FOLDERS for path in sorted((CONFIGS / folder).glob("*.yaml"))]
LEAVES = [path for path in RECIPES if not path.name.startswith("Base-")]
# (tower, data): what section 4.1 of the paper and the published configurations say.
NUMBERS = {
    ("coco_ov", "eva02_b16"): (640, 512, 75.0, 0.1, 0.8, 0.6, 32),
    ("coco_ov", "eva02_l14_336"): (896, 768, 75.0, 0.1, 0.8, 0.6, 28),
    ("lvis_ov", "eva02_b16"): (1024, 512, 50.0, 0.1, 0.6, 0.9, 32),
    ("lvis_ov", "eva02_l14_336"): (896, 768, 50.0, 0.1, 0.4, 0.9, 28),
}


def recipe_id(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def shrink(cfg: CfgNode, size: int) -> CfgNode:
    """The recipe on emoji scenes, with small pictures, few regions and no weights."""
    scenes = "emoji_lvis" if cfg.MODEL.MASK_ON else "emoji_ov"
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.CLIP.WEIGHTS", ""]
        + ["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.PRECISION", "fp32"]
        + ["MODEL.CLIP_FPN.SQUARE_SIZE", size, "INPUT.LSJ_SIZE", size]
        + ["INPUT.MIN_SIZE_TEST", size, "INPUT.MAX_SIZE_TEST", size]
        + ["MODEL.VOCABULARY.CACHE_DIR", "", "MODEL.VOCABULARY.TEMPLATES", "single"]
        + ["MODEL.VOCABULARY.DATASET", "", "DATASETS.TRAIN", (f"{scenes}_train",)]
        + ["DATASETS.TEST", (f"{scenes}_val",), "DATALOADER.NUM_WORKERS", 0]
        + ["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 40]
        + ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100_000]
        + ["SOLVER.IMS_PER_BATCH", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    )
    return cfg


def tiny(cfg: CfgNode) -> CfgNode:
    """The recipe with the embedded tower and thin heads."""
    shrink(cfg, 96)
    cfg.merge_from_list(
        ["MODEL.CLIP.NAME", "ViT-Ti-8-emoji", "MODEL.CLIP.TAP_BLOCKS", [1, 2, 4, 5]]
        + ["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.CONV_DIM", 16]
        + ["MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16]
    )
    return cfg


def expected_losses(cfg: CfgNode) -> set[str]:
    names = {"loss_rpn_cls", "loss_rpn_loc"}
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return names
    names |= {"loss_cls", "loss_box_reg"}
    return names | {"loss_mask"} if cfg.MODEL.MASK_ON else names


def train_one_step(cfg: CfgNode) -> nn.Module:
    """Build the recipe's model, loader and optimizer, and take a step on two scenes."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    batch = next(iter(build_detection_train_loader_from_cfg(cfg)))
    assert len(batch) == 2
    with EventStorage():
        losses = model(batch)
    assert set(losses) == expected_losses(cfg)
    assert all(loss.isfinite() for loss in losses.values()), losses
    before = copy.deepcopy({n: p for n, p in model.named_parameters() if p.requires_grad})
    sum(losses.values()).backward()
    optimizer.step()
    still = [n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])]
    assert before
    assert not still, f"not trained: {still}"
    assert all(p.isfinite().all() for p in model.parameters())
    return model


def detect(cfg: CfgNode, model: nn.Module) -> None:
    item = next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))
    with torch.no_grad():
        found = model.eval()(item)[0]
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        assert len(found["proposals"]) > 0
        return
    found = found["instances"]
    assert len(found) > 0
    assert len(found) <= cfg.TEST.DETECTIONS_PER_IMAGE
    assert found.scores.isfinite().all()
    assert found.has("pred_masks") == cfg.MODEL.MASK_ON
    if cfg.MODEL.MASK_ON:
        assert found.pred_masks.shape[1:] == (item[0]["height"], item[0]["width"])


@pytest.fixture(scope="module")
def checked() -> set[str]:
    """Dumps of configs that have taken their step: leaves that differ in weights alone are one."""
    return set()


@pytest.fixture
def take_step(emoji_data: Path, checked: set[str]) -> Iterator[Callable[[CfgNode], None]]:
    def step(cfg: CfgNode) -> None:
        cfg.OUTPUT_DIR = ""
        key = cfg.dump()
        if key not in checked:
            detect(cfg, train_one_step(cfg))
            checked.add(key)

    return step


@pytest.mark.parametrize("path", RECIPES, ids=recipe_id)
def test_every_recipe_takes_a_step_and_detects_with_a_tiny_tower(path: Path, take_step) -> None:
    take_step(tiny(load_config(str(path), [])))


@pytest.mark.slow
@pytest.mark.parametrize("path", LEAVES, ids=recipe_id)
def test_every_recipe_takes_a_step_and_detects_with_its_own_tower(path: Path, take_step) -> None:
    cfg = load_config(str(path), [])
    take_step(shrink(cfg, 12 * (14 if "L-14" in cfg.MODEL.CLIP.NAME else 16)))


@pytest.mark.parametrize(("data", "tower"), NUMBERS)
def test_published_numbers(data: str, tower: str) -> None:
    size, width, scale, alpha, beta, background, anchor = NUMBERS[data, tower]
    for path in sorted((CONFIGS / data).glob(f"fvit_*_{tower}.yaml")):
        cfg = load_config(str(path), [])
        sizes = cfg.INPUT.LSJ_SIZE, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST
        assert set(sizes) == {size, cfg.MODEL.CLIP_FPN.SQUARE_SIZE}
        assert width == cfg.MODEL.ROI_BOX_HEAD.FC_DIM
        given = cfg.MODEL.OPEN_VOCAB
        fusion = (
            given.CLIP_SCALE,
            given.ENSEMBLE_ALPHA,
            given.ENSEMBLE_BETA,
            given.BACKGROUND_WEIGHT,
        )
        assert fusion == (scale, alpha, beta, background)
        anchors = [side for level in cfg.MODEL.ANCHOR_GENERATOR.SIZES for side in level]
        assert anchors == [anchor * 2**level for level in range(5)]
        assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]


@pytest.mark.parametrize("path", LEAVES, ids=recipe_id)
def test_output_folder_is_named_after_the_recipe(path: Path) -> None:
    cfg = load_config(str(path), [])
    assert f"output/{path.parent.name}/{path.stem}" == cfg.OUTPUT_DIR


@pytest.mark.parametrize("kind", ["clipself_patches", "clipself_proposals", "region_text"])
def test_distilled_towers_come_from_distillation(kind: str) -> None:
    for path in sorted(CONFIGS.glob(f"*_ov/fvit_{kind}_*.yaml")):
        clip = load_config(str(path), []).MODEL.CLIP
        row = Path(clip.WEIGHTS).parent.name
        assert f"output/distill/{row}/model_final.pth" == clip.WEIGHTS
        assert kind.split("_")[-1] in row
        source = load_config(str(CONFIGS / "distill" / f"{row}.yaml"), [])
        assert f"output/distill/{row}" == source.OUTPUT_DIR
        teacher = source.MODEL.CLIP
        assert [clip.NAME, clip.PRETRAINED] == [teacher.NAME, teacher.PRETRAINED]


@pytest.mark.parametrize(
    ("data", "images", "epochs", "drops"),
    [("coco", 107_761, 3, ()), ("lvis", 100_170, 48, (32, 44))],
)
def test_schedule_is_counted_in_epochs_of_64_images(data, images, epochs, drops) -> None:
    solver = load_config(str(CONFIGS / f"{data}_ov" / f"Base-fvit_{data}.yaml"), []).SOLVER
    epoch = math.ceil(images / 64)
    assert solver.IMS_PER_BATCH == 64
    assert epochs * epoch == solver.MAX_ITER
    assert tuple(drop * epoch for drop in drops) == solver.STEPS


@pytest.mark.parametrize("data", ["coco", "lvis"])
def test_learning_rate_warms_up_and_drops(data: str) -> None:
    cfg = load_config(str(CONFIGS / f"{data}_ov" / f"Base-fvit_{data}.yaml"), [])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    optimizer.step()
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = {0: 1e-7, 125: 5.005e-5, 250: 1e-4, cfg.SOLVER.MAX_ITER - 1: 1e-4}
    if data == "lvis":
        rates = {**rates, 50_111: 1e-4, 50_113: 1e-5, 68_905: 1e-6, cfg.SOLVER.MAX_ITER - 1: 1e-6}
    for iteration, rate in rates.items():
        scheduler.last_epoch = iteration - 1
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-3), iteration


def test_decay_covers_every_parameter(emoji_data: Path) -> None:
    cfg = tiny(load_config(str(CONFIGS / "lvis_ov" / "Base-fvit_lvis_eva02_b16.yaml"), []))
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    assert optimizer.max_norm == 1.0
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    scale = model.roi_heads.box_predictor.classifier.scale
    assert id(scale) in trained
    assert scale.item() == 50.0


def test_mixed_precision_trains_the_norms_and_the_masks(emoji_data: Path) -> None:
    cfg = tiny(load_config(str(CONFIGS / "lvis_ov" / "Base-fvit_lvis_eva02_b16.yaml"), []))
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = next(iter(build_detection_train_loader_from_cfg(cfg)))
    with torch.autocast("cpu", dtype=torch.bfloat16), EventStorage():
        losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def names_of(module: nn.Module) -> list[str]:
    return [type(part).__name__ for part in module]


def test_lvis_recipe_has_the_published_layers(emoji_data: Path) -> None:
    cfg = tiny(load_config(str(CONFIGS / "lvis_ov" / "fvit_untouched_eva02_b16.yaml"), []))
    model = build_model(cfg)
    head = model.proposal_generator.rpn_head
    for conv in head.conv:
        assert (type(conv.norm).__name__, conv.bias) == ("SyncBatchNorm", None)
    assert len(head.conv) == 2
    box_head = model.roi_heads.box_head
    assert [type(conv.norm).__name__ for conv in box_head.conv_norm_relus] == ["SyncBatchNorm"] * 4
    assert len(box_head.fcs) == 2
    mask_head = model.roi_heads.mask_head
    assert [type(c.norm).__name__ for c in mask_head.conv_norm_relus] == ["SyncBatchNorm"] * 4
    assert mask_head.predictor.out_channels == 1
    predictor = model.roi_heads.box_predictor
    assert names_of(predictor.cls_score) == ["Linear", "ReLU", "TextClassifier"]
    assert names_of(predictor.bbox_pred) == ["Linear", "ReLU", "Linear"]
    assert predictor.bbox_pred[-1].out_features == 4
    assert model.backbone.padding_constraints == {"size_divisibility": 8, "square_size": 96}


def test_coco_recipe_has_no_norm_in_its_rpn_and_no_masks(emoji_data: Path) -> None:
    cfg = tiny(load_config(str(CONFIGS / "coco_ov" / "fvit_untouched_eva02_b16.yaml"), []))
    model = build_model(cfg)
    head = model.proposal_generator.rpn_head
    assert [conv.norm for conv in head.conv] == [None, None]
    assert not model.roi_heads.mask_on


@pytest.mark.parametrize(("name", "exponent"), [("voc", 0.3), ("coco80", 0.2), ("objects365", 0.3)])
def test_transfer_has_one_exponent_and_a_fixed_scale(
    name: str, exponent: float, emoji_data: Path
) -> None:
    cfg = load_config(str(CONFIGS / "transfer" / f"{name}_eva02_l14.yaml"), [])
    assert cfg.DATASETS.TEST == (cfg.MODEL.VOCABULARY.DATASET,)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    heads = cfg.MODEL.ROI_HEADS
    assert (heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST) == (1e-4, 0.5)
    predictor = build_model(tiny(cfg)).roi_heads.box_predictor
    assert (predictor.alpha, predictor.beta, predictor.clip_scale) == (exponent,) * 2 + (120,)
    assert predictor.classifier.scale.item() == 50.0
    assert not predictor.classifier.scale.requires_grad
