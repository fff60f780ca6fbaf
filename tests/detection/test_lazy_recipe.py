"""The LazyConfig recipe of F-ViT is the yaml recipe."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from clipself_d2.engine.cli import load_config
from clipself_d2.engine.solver import ClippedAdamW

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = 96
# The same changes in both languages: the embedded tower, thin heads, few regions.
SMALL_YAML = [
    *("MODEL.DEVICE", "cpu", "MODEL.CLIP.NAME", "ViT-Ti-8-emoji", "MODEL.CLIP.PRETRAINED", "emoji"),
    *("MODEL.CLIP.TAP_BLOCKS", [1, 2, 4, 5], "MODEL.CLIP.PRECISION", "fp32"),
    *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.CLIP_FPN.SQUARE_SIZE", SIZE),
    *("INPUT.LSJ_SIZE", SIZE, "INPUT.MIN_SIZE_TEST", SIZE, "INPUT.MAX_SIZE_TEST", SIZE),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.VOCABULARY.TEMPLATES", "emoji", "MODEL.VOCABULARY.CACHE_DIR", ""),
    *("DATASETS.TRAIN", ("emoji_ov_train",)),
]
SMALL_LAZY = [
    *("shared.size=96", "shared.clip=ViT-Ti-8-emoji", "shared.weights=emoji"),
    *("shared.templates=emoji", "shared.cache_dir=null", "shared.classes_of=emoji_ov_train"),
    *("model.backbone.backbone.tower.precision=fp32", "model.backbone.out_channels=32"),
    *("model.backbone.backbone.tap_blocks=[1,2,4,5]", "model.roi_heads.clip_stride=8"),
    *("model.proposal_generator.head.in_channels=32", "model.roi_heads.box_head.fc_dims=[32,32]"),
    *("model.roi_heads.box_head.conv_dims=[16,16,16,16]", "dataloader.train.num_workers=0"),
    *("dataloader.train.dataset.names=emoji_ov_train", "dataloader.train.total_batch_size=2"),
]


@pytest.fixture
def yaml_cfg(emoji_data: Path) -> CfgNode:
    cfg = load_config(str(CONFIGS / "coco_ov" / "fvit_untouched_eva02_b16.yaml"), [])
    cfg.merge_from_list(SMALL_YAML)
    return cfg


@pytest.fixture
def lazy_cfg(emoji_data: Path) -> DictConfig:
    cfg = LazyConfig.load(str(CONFIGS / "lazy" / "fvit_coco_vitb16.py"))
    cfg = LazyConfig.apply_overrides(cfg, SMALL_LAZY)
    heads = cfg.model.roi_heads
    heads.box_head.input_shape = ShapeSpec(channels=32, height=7, width=7)
    heads.box_predictor.input_shape = ShapeSpec(channels=32)
    return cfg


@pytest.fixture
def models(yaml_cfg: CfgNode, lazy_cfg: DictConfig) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return build_model(yaml_cfg), instantiate(lazy_cfg.model)


def shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {name: (tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()}


def test_parameters_have_the_same_names_and_shapes(models) -> None:
    by_yaml, by_lazy = models
    assert shapes(by_yaml) == shapes(by_lazy)
    assert set(by_yaml.state_dict()) == set(by_lazy.state_dict())


def test_losses_and_detections_are_the_same(models, lazy_cfg: DictConfig) -> None:
    batch = next(iter(instantiate(lazy_cfg.dataloader.train)))
    assert max(max(item["image"].shape[1:]) for item in batch) <= SIZE
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    losses, found = [], []
    for model in models:
        torch.manual_seed(1)
        with EventStorage():
            losses.append({name: loss.item() for name, loss in model.train()(batch).items()})
        with torch.no_grad():
            found.append(model.eval()(batch)[0]["instances"])
    assert losses[0] == losses[1]
    assert len(found[0]) == len(found[1]) > 0
    assert torch.equal(found[0].scores, found[1].scores)
    assert torch.equal(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)


def test_solver_and_schedule_are_those_of_the_yaml(yaml_cfg: CfgNode, lazy_cfg) -> None:
    solver, given = yaml_cfg.SOLVER, lazy_cfg.optimizer
    assert given["_target_"] is ClippedAdamW or str(given["_target_"]).endswith("ClippedAdamW")
    assert (given.lr, given.weight_decay) == (solver.BASE_LR, solver.WEIGHT_DECAY)
    assert list(given.betas) == solver.ADAM_BETAS
    assert given.max_norm == solver.CLIP_GRADIENTS.CLIP_VALUE
    assert given.params.weight_decay_norm == solver.WEIGHT_DECAY_NORM
    train = lazy_cfg.train
    assert (train.max_iter, train.eval_period) == (solver.MAX_ITER, yaml_cfg.TEST.EVAL_PERIOD)
    assert train.amp.enabled == solver.AMP.ENABLED
    multiplier = instantiate(lazy_cfg.lr_multiplier)
    half = solver.WARMUP_ITERS / 2 / solver.MAX_ITER
    assert multiplier(0.0) == pytest.approx(solver.WARMUP_FACTOR)
    assert multiplier(half) == pytest.approx((1 + solver.WARMUP_FACTOR) / 2)
    assert multiplier(2.1 * half) == multiplier(0.999) == 1.0


def test_recipe_has_the_published_sizes() -> None:
    cfg = LazyConfig.load(str(CONFIGS / "lazy" / "fvit_coco_vitb16.py"))
    published = load_config(str(CONFIGS / "coco_ov" / "fvit_untouched_eva02_b16.yaml"), [])
    assert cfg.model.backbone.square_size == published.MODEL.CLIP_FPN.SQUARE_SIZE
    assert cfg.dataloader.test.mapper.augmentations[0].max_size == published.INPUT.MAX_SIZE_TEST
    assert cfg.dataloader.train.mapper.augmentations.size == published.INPUT.LSJ_SIZE
    assert cfg.dataloader.train.total_batch_size == published.SOLVER.IMS_PER_BATCH
    assert list(cfg.model.roi_heads.box_head.fc_dims) == [published.MODEL.ROI_BOX_HEAD.FC_DIM] * 2
    assert cfg.model.backbone.backbone.tower.name == published.MODEL.CLIP.NAME
    assert cfg.shared.weights == published.MODEL.CLIP.PRETRAINED
    assert list(cfg.model.backbone.backbone.tap_blocks) == published.MODEL.CLIP.TAP_BLOCKS
    predictor, options = cfg.model.roi_heads.box_predictor, published.MODEL.OPEN_VOCAB
    assert (predictor.alpha, predictor.beta) == (options.ENSEMBLE_ALPHA, options.ENSEMBLE_BETA)
    assert predictor.clip_scale == options.CLIP_SCALE
    assert predictor.background_weight == options.BACKGROUND_WEIGHT
