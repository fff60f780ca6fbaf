from functools import partial

import pytest
import torch

from clipself_d2.clip import VisionTower
from clipself_d2.data import build as data_build
from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.idle_rows import keep_idle_rows
from clipself_d2.engine.trainer import Trainer

BLOCK = "visual.transformer.resblocks"


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
    last = f"{BLOCK}.{tower.num_blocks - 1}.attn"
    return {f"{last}.in_proj_weight": 2 * tower.width, f"{last}.in_proj_bias": 2 * tower.width}


def check(tower: VisionTower, before: dict[str, torch.Tensor]) -> None:
    """The idle rows are bit-equal, all other trained weights have moved."""
    after, idle = tower.state_dict(), query_and_key(tower)
    for name, parameter in tower.named_parameters():
        rows = idle.get(name, 0)
        assert torch.equal(after[name][:rows], before[name][:rows]), name
        moved = not torch.equal(after[name][rows:], before[name][rows:])
        assert moved == parameter.requires_grad, name


def test_rows_without_gradient_stay_as_they_are_in_a_distiller(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WARMUP_ITERS", 0)
    tower, before = steps(DistillTrainer(cfg))
    check(tower, before)


def test_rows_without_gradient_stay_as_they_are_in_a_detector(emoji_cfg) -> None:
    cfg = emoji_cfg(
        "fvit_untouched",
        *("MODEL.CLIP.TRAINABLE_BLOCKS", 2, "SOLVER.OPTIMIZER", "AdamW"),
        *("SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WARMUP_ITERS", 0),
    )
    tower, before = steps(Trainer(cfg))
    check(tower, before)


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
