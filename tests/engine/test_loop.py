import logging

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer, defaults
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clipself_d2.clip import load_tower
from clipself_d2.clip import precision as precision_module
from clipself_d2.engine import loop as loop_module
from clipself_d2.engine.accumulation import AccumulatingModel
from clipself_d2.engine.loop import adapt_loop, amp_dtype, amp_runs, cpu_processes, parallel_model
from clipself_d2.engine.trainer import Trainer

CPU = torch.device("cpu")


def model_with(precision: str) -> nn.Module:
    model = nn.Module()
    model.tower = load_tower("ViT-Ti-8-emoji", None, precision=precision)
    return model


@pytest.mark.parametrize(
    ("precision", "hardware", "expected"),
    [
        ("fp32", True, torch.float16),
        ("fp16", True, torch.float16),
        ("bf16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float16),
    ],
)
def test_mixed_precision_has_the_type_of_the_towers(monkeypatch, precision, hardware, expected):
    monkeypatch.setattr(precision_module, "cpu_has_bf16", lambda: hardware)
    assert amp_dtype(model_with(precision), CPU) == expected


def test_a_model_without_a_tower_has_detectron2s_type():
    assert amp_dtype(nn.Linear(1, 1), CPU) == torch.float16


def amp_loop(model: nn.Module, monkeypatch) -> tuple[AMPTrainer, list[bool]]:
    """A loop, and whether its gradients are scaled; no scaler works without a GPU."""
    scaled: list[bool] = []

    class Scaler:
        def __init__(self, device: str, enabled: bool) -> None:
            scaled.append(enabled)

        def scale(self, loss: torch.Tensor) -> torch.Tensor:
            return 8 * loss

    monkeypatch.setattr(loop_module.torch.amp, "GradScaler", Scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return AMPTrainer(model, [], optimizer, grad_scaler=object()), scaled


@pytest.mark.parametrize(("precision", "is_scaled"), [("fp32", True), ("bf16", False)])
def test_the_log_says_what_mixed_precision_does(monkeypatch, caplog, precision, is_scaled):
    loop, scaled = amp_loop(model_with(precision), monkeypatch)
    with caplog.at_level(logging.INFO, logger="clipself_d2"):
        adapt_loop(loop)
    assert scaled == [is_scaled]
    assert ("float16 with loss scaling" in caplog.text) == is_scaled
    assert ("also in the CLIP tower of precision fp32" in caplog.text) == is_scaled
    assert len(caplog.records) == 1


def test_parts_of_a_batch_go_through_the_scaler(monkeypatch):
    class Squares(nn.Linear):
        def forward(self, items):  # type: ignore[override]
            return {"loss": super().forward(torch.cat(items)).square().mean()}

    loop, _ = amp_loop(Squares(2, 1, bias=False), monkeypatch)
    adapt_loop(loop, steps=2)
    assert isinstance(loop.model, AccumulatingModel)
    assert loop.zero_grad_before_forward
    items = [torch.ones(1, 2), torch.full((1, 2), 2.0)]
    loop.model(items)
    first = loop.model.module.weight.grad.clone()
    loop.model.module.zero_grad()
    (0.5 * loop.model.module(items[:1])["loss"]).backward()
    torch.testing.assert_close(first, 8 * loop.model.module.weight.grad)


def test_a_plain_loop_stays_as_it_is():
    model = nn.Linear(1, 1)
    loop = SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    adapt_loop(loop)
    assert loop.model is model
    assert not loop.zero_grad_before_forward


def test_fp16_without_a_scaler_is_warned_of(caplog):
    model = model_with("fp16")
    loop = SimpleTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    with caplog.at_level(logging.WARNING, logger="clipself_d2"):
        adapt_loop(loop)
    assert "without loss scaling" in caplog.text


def test_mixed_precision_is_for_cuda(caplog):
    assert amp_runs("cuda:1", enabled=True)
    assert not amp_runs("cpu", enabled=False)
    assert not caplog.records
    assert not amp_runs("cpu", enabled=True)
    assert "ignored on cpu" in caplog.text


def test_a_trainer_on_a_cpu_leaves_mixed_precision_out(emoji_cfg):
    cfg = emoji_cfg("rpn", "SOLVER.AMP.ENABLED", True)
    trainer = Trainer(cfg)
    assert type(trainer._trainer) is SimpleTrainer


def test_detectron2_is_as_it_was_afterwards(monkeypatch):
    before = defaults.create_ddp_model
    with cpu_processes():
        assert defaults.create_ddp_model is before
    monkeypatch.setattr(loop_module.comm, "get_world_size", lambda: 2)
    with cpu_processes():
        assert defaults.create_ddp_model is parallel_model
    assert defaults.create_ddp_model is before


def test_one_process_has_no_wrapper():
    model = nn.Linear(1, 1)
    assert parallel_model(model, broadcast_buffers=False) is model
    assert not isinstance(model, DistributedDataParallel)
