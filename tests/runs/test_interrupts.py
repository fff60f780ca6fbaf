import os
import signal
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer, hooks
from torch import nn

from clipself_d2.runs.checkpointer import StrictCheckpointer
from clipself_d2.runs.interrupts import Interrupted, StopOnSignal, raising_sigterm


class Noisy(nn.Module):
    """A model with a state that every step changes; it may get a signal in a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.signal_at, self.signum, self.steps = -1, signal.SIGTERM, 0

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.norm(self.layer(batch))
        if self.training:
            self.steps += 1
            if self.steps == self.signal_at:
                os.kill(os.getpid(), self.signum)
        return {"loss": (out * batch).pow(2).mean()}


class Batches:
    """Batch k is a function of k; before one of them a signal may come."""

    def __init__(self, start: int = 0, signal_before: int = -1) -> None:
        self.number, self.signal_before = start, signal_before

    def __iter__(self):
        while True:
            if self.number == self.signal_before:
                os.kill(os.getpid(), signal.SIGINT)
            generator = torch.Generator().manual_seed(self.number)
            self.number += 1
            yield torch.randn(4, 3, generator=generator)


def train(folder: Path, *, resume=False, steps=6, signal_at=-1, signal_before=-1, evaluate=None):
    model = Noisy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, Batches(), optimizer)
    checkpointer = StrictCheckpointer(model, str(folder), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.PeriodicCheckpointer(checkpointer, 100),
            StopOnSignal(checkpointer, model),
            hooks.EvalHook(2, evaluate or (lambda: None)),
        ]
    )
    checkpointer.resume_or_load("", resume=resume)
    start = trainer.iter + 1 if checkpointer.has_checkpoint() else 0
    trainer.data_loader = Batches(start, signal_before)
    model.signal_at = signal_at
    trainer.train(start, steps)
    return model.state_dict()


def equal(first: dict, second: dict) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("how", "signum", "saved"),
    [
        ({"signal_at": 3}, signal.SIGTERM, "model_0000002.pth"),
        ({"signal_before": 3}, signal.SIGINT, "model_0000002.pth"),
    ],
)
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, how, signum, saved) -> None:
    straight = train(tmp_path / "a")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"after iteration 2 of 6.*--resume") as stop:
        train(tmp_path / "b", **how)
    assert stop.value.signum == signum
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (tmp_path / "b" / "last_checkpoint").read_text() == saved
    assert equal(straight, train(tmp_path / "b", resume=True))


def test_an_evaluation_is_not_waited_for(tmp_path) -> None:
    straight, calls = train(tmp_path / "a"), []

    def evaluate() -> None:
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        calls.append(2)

    with pytest.raises(Interrupted, match="after iteration 1 of 6"):
        train(tmp_path / "b", evaluate=evaluate)
    assert calls == [1]
    assert equal(straight, train(tmp_path / "b", resume=True))


def test_a_training_that_is_done_is_not_evaluated_after_the_signal(tmp_path) -> None:
    calls = []
    with pytest.raises(Interrupted, match="after the training"):
        train(tmp_path, steps=1, signal_at=1, evaluate=lambda: calls.append(1))
    assert calls == []
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_run_killed_between_its_last_two_checkpoints_gets_the_final_one(tmp_path) -> None:
    train(tmp_path)
    final = tmp_path / "model_final.pth"
    before = torch.load(final, weights_only=True)
    final.rename(tmp_path / "model_0000005.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    train(tmp_path, resume=True)
    after = torch.load(final, weights_only=True)
    assert equal(before["model"], after["model"])
    assert after["iteration"] == before["iteration"] == 5
    assert after["trainer"]["iteration"] == before["trainer"]["iteration"]


def test_before_the_first_step_nothing_is_saved(tmp_path) -> None:
    with pytest.raises(Interrupted, match="before a step was done; nothing was saved"):
        train(tmp_path, signal_before=0)
    assert not list(tmp_path.glob("*.pth"))


def test_sigterm_ends_other_commands_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop, raising_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
