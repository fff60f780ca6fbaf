"""Layer-wise learning rates of a tower inside a detector."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import build_optimizer
from torch import nn

from clipself_d2.clip.model import load_tower
from clipself_d2.config import add_clipself_config
from clipself_d2.engine.lr_decay import (
    build_sgd,
    decayed_optimizer_params,
    layer_decay,
    learning_rate_factors,
    optimizer_params_from_cfg,
)


@pytest.fixture
def model() -> nn.Module:
    detector = nn.Module()
    detector.backbone = nn.Module()
    detector.backbone.tower = load_tower("ViT-Ti-8-emoji", None)
    detector.head = nn.Linear(4, 2)
    return detector


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
    assert set(learning_rate_factors(model, 1.0).values()) == {1.0}
    assert set(rates(model, decayed_optimizer_params(model, base_lr=0.3, rate=1.0)).values()) == {
        0.3
    }


def test_every_trained_parameter_is_in_one_group(model):
    model.backbone.tower.freeze(2)
    groups = decayed_optimizer_params(model, base_lr=1.0, rate=0.5, weight_decay_norm=0.0)
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(trained)


def test_yaml_sets_the_factor(model):
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.LAYER_DECAY = 0.1, 0.8
    found = rates(model, optimizer_params_from_cfg(cfg, model))
    name = PREFIX + "transformer.resblocks.5.ln_1.weight"
    assert found[name] == pytest.approx(0.08)
    assert found["head.bias"] == pytest.approx(0.1)


def test_an_optimiser_takes_the_groups(model):
    groups = decayed_optimizer_params(model, base_lr=1e-3, rate=0.5)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert len(optimizer.param_groups) > 6


def test_sgd_without_decay_is_detectron2s(model):
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.NESTEROV = 0.0, True
    theirs = build_optimizer(cfg, model)
    ours = build_sgd(cfg, optimizer_params_from_cfg(cfg, model))
    assert len(ours.param_groups) == len(theirs.param_groups) == 2
    for own, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in own["params"]] == [id(p) for p in other["params"]]
        for key in ("lr", "weight_decay", "momentum", "nesterov"):
            assert own[key] == other[key]


@pytest.mark.parametrize("rate", [0.0, -1.0, 1.5])
def test_what_is_no_factor_is_refused(model, rate):
    with pytest.raises(ValueError, match="SOLVER.LAYER_DECAY"):
        layer_decay(model, rate)
