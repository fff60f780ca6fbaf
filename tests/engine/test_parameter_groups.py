import pytest
import torch
from detectron2.modeling import build_model

from clipself_d2.engine.parameter_groups import build_adam, is_pretrained, rate_groups

SMALL = ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.NUM_LAYERS", 1, "SOLVER.BASE_LR", 0.01]
SMALL += ["MODEL.CLIP.TRAINABLE_BLOCKS", -1, "MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", -1]
SMALL += ["MODEL.CRIS.KERNEL_SIZE", 3]


@pytest.fixture
def cfg(emoji_cfg):
    return emoji_cfg("cris", *SMALL, "SOLVER.BACKBONE_MULTIPLIER", 0.1)


def test_towers_are_slow_and_the_rest_and_position_tables_are_not(cfg):
    model = build_model(cfg)
    full, slow = rate_groups(cfg, model)
    assert (full["lr"], slow["lr"]) == (0.01, pytest.approx(0.001))
    names = {parameter: name for name, parameter in model.named_parameters()}
    slow_names = {names[parameter] for parameter in slow["params"]}
    full_names = {names[parameter] for parameter in full["params"]}
    assert "text.clip.positional_embedding" in full_names
    assert "backbone.tower.visual.positional_embedding" in full_names
    assert {"text.clip.token_embedding.weight", "text.clip.text_projection"} <= slow_names
    assert "backbone.tower.visual.conv1.weight" in slow_names
    assert {name.split(".")[0] for name in slow_names} == {"backbone", "text"}
    assert {"neck", "decoder", "proj", "resampling"} <= {n.split(".")[0] for n in full_names}
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert len(slow_names) + len(full_names) == trained


def test_the_residual_branch_of_a_resnet_is_slow():
    assert is_pretrained("backbone.pool.connect.0.weight")
    assert not is_pretrained("backbone.tower.visual.attnpool.positional_embedding")
    assert not is_pretrained("neck.aggr.0.weight")


def test_optimizer_is_adam_without_decay_unless_asked(cfg):
    optimizer = build_adam(cfg, build_model(cfg))
    assert type(optimizer) is torch.optim.Adam
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_first_step_moves_each_part_by_its_own_rate(cfg):
    model = build_model(cfg)
    optimizer = build_adam(cfg, model)
    fast = model.neck.aggr[0].weight
    slow = model.backbone.tower.visual.conv1.weight
    before = fast.detach().clone(), slow.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(before[0] - fast, torch.full_like(fast, 0.01))
    torch.testing.assert_close(before[1] - slow, torch.full_like(slow, 0.001))


def test_frozen_towers_leave_one_group(cfg):
    cfg.MODEL.CLIP.TRAINABLE_BLOCKS = cfg.MODEL.CLIP.TEXT_TRAINABLE_BLOCKS = 0
    assert len(rate_groups(cfg, build_model(cfg))) == 1


def test_faults_are_named(cfg):
    with pytest.raises(ValueError, match=r"MODEL\.CLIP\.TRAINABLE_BLOCKS"):
        rate_groups(cfg, torch.nn.ReLU())
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    with pytest.raises(ValueError, match="full_model goes with SOLVER.OPTIMIZER AdamW"):
        build_adam(cfg, torch.nn.Linear(2, 2))
