"""Optimisers, and learning rates by part of a model."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import build_optimizer as detectron2_optimizer
from torch import nn

from clipself_d2.clip import VisionTower
from clipself_d2.clip.model import load_tower
from clipself_d2.clip.towers.resnet import DenseAttentionPool
from clipself_d2.config import add_clipself_config
from clipself_d2.data import build as data_build
from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.solver import (
    ClippedAdamW,
    build_optimizer,
    decayed_optimizer_params,
    fused_options,
    keep_idle_rows,
    layer_decay,
    optimizer_params_from_cfg,
    pretrained_parameters,
)
from clipself_d2.engine.trainer import Trainer


@pytest.fixture
def model() -> nn.Module:
    detector = nn.Module()
    detector.backbone = nn.Module()
    detector.backbone.tower = load_tower("ViT-Ti-8-emoji", None)
    detector.head = nn.Linear(4, 2)
    return detector


def config() -> CfgNode:
    cfg = get_cfg()
    add_clipself_config(cfg)
    return cfg


def rates(model: nn.Module, groups: list[dict]) -> dict[str, float]:
    of = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters() if id(p) in of}


PREFIX = "backbone.tower.visual."


def test_the_rate_falls_by_the_factor_from_block_to_block(model):
    found = rates(model, decayed_optimizer_params(model, base_lr=1.0, rate=0.5))
    assert found["head.weight"] == 1.0
    assert found[PREFIX + "ln_post.weight"] == 1.0
    for number in range(6):
        name = f"{PREFIX}transformer.resblocks.{number}.mlp.c_fc.weight"
        assert found[name] == pytest.approx(0.5 ** (6 - number))
    assert found[PREFIX + "conv1.weight"] == pytest.approx(0.5**7)
    assert found[PREFIX + "positional_embedding"] == pytest.approx(0.5**7)


def test_the_order_is_that_of_detectron2s_vitdet(model):
    ours = layer_decay(model, 0.7)
    for number in range(6):
        theirs = get_vit_lr_decay_rate(f"backbone.net.blocks.{number}.mlp", 0.7, num_layers=6)
        assert ours(f"{PREFIX}transformer.resblocks.{number}.ln_1.bias") == pytest.approx(theirs)
    theirs = get_vit_lr_decay_rate("backbone.net.pos_embed", 0.7, num_layers=6)
    assert ours(PREFIX + "positional_embedding") == pytest.approx(theirs)


def test_no_decay_is_one_rate(model):
    found = rates(model, decayed_optimizer_params(model, base_lr=0.3, rate=1.0))
    assert set(found.values()) == {0.3}


def test_every_trained_parameter_is_in_one_group_of_an_optimiser(model):
    model.backbone.tower.freeze(2)
    groups = decayed_optimizer_params(model, base_lr=1.0, rate=0.5, weight_decay_norm=0.0)
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(trained)
    assert len(torch.optim.AdamW(groups, lr=1e-3).param_groups) == len(groups)


def test_yaml_sets_the_factor(model):
    cfg = config()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.LAYER_DECAY = 0.1, 0.8
    found = rates(model, optimizer_params_from_cfg(cfg, model))
    name = PREFIX + "transformer.resblocks.5.ln_1.weight"
    assert found[name] == pytest.approx(0.08)
    assert found["head.bias"] == pytest.approx(0.1)


def test_sgd_without_decay_is_detectron2s(model):
    cfg = config()
    cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.NESTEROV = 0.0, True
    theirs = detectron2_optimizer(cfg, model)
    ours = build_optimizer(cfg, optimizer_params_from_cfg(cfg, model))
    assert len(ours.param_groups) == len(theirs.param_groups) == 2
    for own, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in own["params"]] == [id(p) for p in other["params"]]
        for key in ("lr", "weight_decay", "momentum", "nesterov"):
            assert own[key] == other[key]


SMALL = ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.NUM_LAYERS", 1, "SOLVER.BASE_LR", 0.01]
SMALL += ["MODEL.CLIP.TRAINABLE_BLOCKS", -1, "MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", -1]
SMALL += ["MODEL.CRIS.KERNEL_SIZE", 3]


@pytest.fixture
def cris_cfg(emoji_cfg):
    return emoji_cfg("cris", *SMALL, "SOLVER.BACKBONE_MULTIPLIER", 0.1)


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
def test_towers_are_slow_and_the_rest_and_position_tables_are_not(cris_cfg, optimizer):
    cris_cfg.SOLVER.OPTIMIZER = optimizer
    model = build_model(cris_cfg)
    found = rates(model, Trainer.build_optimizer(cris_cfg, model).param_groups)
    slow = {name for name, rate in found.items() if rate == pytest.approx(0.001)}
    full = {name for name, rate in found.items() if rate == 0.01}
    assert len(slow) + len(full) == sum(p.requires_grad for p in model.parameters())
    assert "text.clip.positional_embedding" in full
    assert "backbone.tower.visual.positional_embedding" in full
    assert {"text.clip.token_embedding.weight", "text.clip.text_projection"} <= slow
    assert "backbone.tower.visual.conv1.weight" in slow
    assert {name.split(".")[0] for name in slow} == {"backbone", "text"}
    assert {"neck", "decoder", "proj", "resampling"} <= {name.split(".")[0] for name in full}


def test_the_residual_branch_of_a_resnet_is_slow():
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.tower = load_tower("RN50", None)
    model.backbone.pool = DenseAttentionPool(2048, 1024, nn.BatchNorm2d)
    model.neck = nn.Linear(2, 2)
    slow = pretrained_parameters(model)
    assert {name for name in slow if not name.startswith("backbone.tower.")} == {
        f"backbone.pool.{name}" for name, _ in model.backbone.pool.named_parameters()
    }
    assert "backbone.tower.visual.attnpool.positional_embedding" not in slow
    assert "backbone.tower.visual.attnpool.k_proj.weight" in slow


def test_a_pyramid_over_a_slow_tower_is_not_slow(emoji_cfg):
    cfg = emoji_cfg("fvit_untouched", "SOLVER.BACKBONE_MULTIPLIER", 0.1)
    cfg.MODEL.CLIP.TRAINABLE_BLOCKS = 1
    model = build_model(cfg)
    found = rates(model, Trainer.build_optimizer(cfg, model).param_groups)
    base = cfg.SOLVER.BASE_LR
    slow = {name for name, rate in found.items() if rate == pytest.approx(0.1 * base)}
    assert slow
    assert all(".tower." in name for name in slow)
    assert all(found[name] == base for name in found if ".tower." not in name)


def test_a_distilled_student_is_slow(emoji_cfg):
    cfg = emoji_cfg("clipself_patches", "SOLVER.BACKBONE_MULTIPLIER", 0.5)
    optimizer = DistillTrainer.build_optimizer(cfg, build_model(cfg))
    assert {group["lr"] for group in optimizer.param_groups} == {0.5 * cfg.SOLVER.BASE_LR}


def test_the_multiplier_is_one_unless_a_recipe_says_otherwise(model):
    found = rates(model, optimizer_params_from_cfg(config(), model))
    assert set(found.values()) == {0.001}


def test_optimizer_is_adam_without_decay_unless_asked(cris_cfg):
    optimizer = Trainer.build_optimizer(cris_cfg, build_model(cris_cfg))
    assert type(optimizer) is torch.optim.Adam
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_first_step_moves_each_part_by_its_own_rate(cris_cfg):
    model = build_model(cris_cfg)
    optimizer = Trainer.build_optimizer(cris_cfg, model)
    fast = model.neck.aggr[0].weight
    slow = model.backbone.tower.visual.conv1.weight
    before = fast.detach().clone(), slow.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(before[0] - fast, torch.full_like(fast, 0.01))
    torch.testing.assert_close(before[1] - slow, torch.full_like(slow, 0.001))


def test_faults_are_named(cris_cfg):
    with pytest.raises(ValueError, match=r"nothing of the model .*MODEL\.CLIP\.TRAINABLE_BLOCKS"):
        Trainer.build_optimizer(cris_cfg, nn.ReLU())
    cris_cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cris_cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    with pytest.raises(ValueError, match="full_model goes with SOLVER.OPTIMIZER AdamW"):
        Trainer.build_optimizer(cris_cfg, nn.Linear(2, 2))


@pytest.mark.parametrize("value", [5.0, 0.3])
def test_clipping_bounds_the_norm_of_all_gradients_together_and_leaves_small_ones(value) -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    optimizer = ClippedAdamW([{"params": parameters}], max_norm=1.0, lr=0.0)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    optimizer.step()
    norm = torch.cat([parameter.grad for parameter in parameters]).norm()
    assert float(norm) == pytest.approx(min(1.0, value * 5**0.5), abs=1e-5)


def test_a_fused_step_is_for_parameters_on_a_gpu() -> None:
    assert fused_options([nn.Parameter(torch.zeros(1))]) == {}
    assert fused_options([SimpleNamespace(is_cuda=True)]) == {"fused": True}
    mixed = [SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)]
    assert fused_options(mixed) == {}


def steps(trainer) -> tuple[VisionTower, dict[str, torch.Tensor]]:
    """The tower after training, and its weights before them."""
    (tower,) = (
        module
        for module in trainer.model.modules()
        if isinstance(module, VisionTower) and any(p.requires_grad for p in module.parameters())
    )
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    trainer.train()
    return tower, before


def query_and_key(tower: VisionTower) -> dict[str, int]:
    last = f"visual.transformer.resblocks.{tower.num_blocks - 1}.attn"
    return {f"{last}.in_proj_weight": 2 * tower.width, f"{last}.in_proj_bias": 2 * tower.width}


@pytest.mark.parametrize(
    ("trainer", "recipe", "keys"),
    [
        (DistillTrainer, "clipself_patches", ()),
        (Trainer, "fvit_untouched", ("MODEL.CLIP.TRAINABLE_BLOCKS", 2)),
    ],
)
def test_rows_without_gradient_stay_as_they_are(emoji_cfg, trainer, recipe, keys) -> None:
    """The idle rows are bit-equal, all other trained weights have moved."""
    keys += ("SOLVER.OPTIMIZER", "AdamW", "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WARMUP_ITERS", 0)
    tower, before = steps(trainer(emoji_cfg(recipe, *keys)))
    after, idle = tower.state_dict(), query_and_key(tower)
    for name, parameter in tower.named_parameters():
        rows = idle.get(name, 0)
        assert torch.equal(after[name][:rows], before[name][:rows]), name
        moved = not torch.equal(after[name][rows:], before[name][rows:])
        assert moved == parameter.requires_grad, name


@pytest.mark.parametrize("form", ["attention", "clipself"])
def test_rows_with_gradient_move(emoji_cfg, monkeypatch, form: str) -> None:
    """The whole picture of the image loss passes the last block as it was trained."""
    cfg = emoji_cfg(
        "clipself_patches",
        *("MODEL.CLIP.DENSE_FORM", form),
        *("SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WARMUP_ITERS", 0),
    )
    if form == "clipself":
        monkeypatch.setattr(data_build, "DistillMapper", partial(DistillMapper, whole_image=True))
    trainer = DistillTrainer(cfg)
    trainer.model.image_loss_weight = float(form == "clipself")
    tower, before = steps(trainer)
    after = tower.state_dict()
    for name, rows in query_and_key(tower).items():
        assert not torch.equal(after[name][:rows], before[name][:rows]), name


def test_a_model_without_such_rows_has_no_hook() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = keep_idle_rows(torch.optim.AdamW(model.parameters()), model)
    assert not optimizer._optimizer_step_pre_hooks
