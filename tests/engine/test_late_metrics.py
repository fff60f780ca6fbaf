import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer, hooks
from detectron2.utils.events import JSONWriter, get_event_storage
from torch import Tensor, nn

from clipself_d2.engine import trainer as trainer_module
from clipself_d2.engine.late_metrics import LateMetrics

ITERATIONS = 7


class TwoLosses(nn.Linear):
    """Losses that differ from iteration to iteration; of one the value is not finite."""

    def __init__(self, broken: int = -1) -> None:
        super().__init__(1, 1)
        self.broken, self.calls = broken, -1

    def forward(self, item: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        self.calls += 1
        number = float("nan") if self.calls == self.broken else float(item)
        loss = super().forward(torch.ones(1)).square().sum()
        return {"loss_one": number * loss, "loss_two": loss}


class Watched(hooks.HookBase):
    """Notes what each iteration's losses are known to be after it."""

    def __init__(self) -> None:
        self.known: list[int] = []

    def after_step(self) -> None:
        history = get_event_storage().histories().get("total_loss")
        self.known.append(0 if history is None else len(history.values()))


class Stopper(hooks.HookBase):
    """Ends the run before an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise InterruptedError("stopped")


def run(
    folder: Path, *, late: int | None, period: int, broken: int = -1, stopped: int = -1
) -> list[int]:
    torch.manual_seed(0)
    model = TwoLosses(broken)
    items = [torch.tensor(float(number)) for number in range(ITERATIONS)]
    loop = SimpleTrainer(model, items, torch.optim.SGD(model.parameters(), lr=0.01))
    watched = Watched()
    writer = hooks.PeriodicWriter([JSONWriter(str(folder / "metrics.json"), 3)], period=period)
    made = [] if late is None else [LateMetrics(loop, period=late)]
    loop.register_hooks([*made, watched, writer, Stopper(stopped)])
    loop.train(0, ITERATIONS)
    return watched.known


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.json").read_text().splitlines()
    timed = ("data_time", "rank_data_time")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.parametrize("period", [1, 3, ITERATIONS])
def test_files_are_those_of_detectron2(tmp_path, period):
    early, late = tmp_path / "early", tmp_path / "late"
    for folder in (early, late):
        folder.mkdir()
    run(early, late=None, period=period)
    run(late, late=period, period=period)
    assert rows(early) == rows(late)
    assert len(rows(early)) == -(-ITERATIONS // period)


def test_a_stopped_run_logs_what_it_has_done_as_detectron2_does(tmp_path):
    early, late = tmp_path / "early", tmp_path / "late"
    for folder, wait in ((early, None), (late, 3)):
        folder.mkdir()
        with pytest.raises(InterruptedError):
            run(folder, late=wait, period=3, stopped=5)
    assert rows(early) == rows(late)
    assert rows(late)[-1]["total_loss"] != rows(late)[0]["total_loss"]


def test_losses_are_read_where_they_are_written_and_at_the_end(tmp_path):
    assert run(tmp_path, late=3, period=3) == [0, 0, 3, 3, 3, 6, 7]


def test_the_iteration_of_a_loss_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match="iteration=4"):
        run(tmp_path, late=3, period=3, broken=4)


@pytest.mark.parametrize(("device", "expected"), [("cpu", 0), ("cuda", 1)])
def test_a_loop_on_a_gpu_reads_late(emoji_cfg, monkeypatch, device, expected):
    trainer = trainer_module.Trainer(emoji_cfg("rpn"))
    monkeypatch.setattr(trainer, "cfg", trainer.cfg.clone())
    trainer.cfg.MODEL.DEVICE = device
    made = trainer.build_hooks()
    assert sum(isinstance(hook, LateMetrics) for hook in made) == expected
    if expected:
        writers = next(i for i, hook in enumerate(made) if isinstance(hook, hooks.PeriodicWriter))
        assert isinstance(made[1], LateMetrics)
        assert writers > 1
        assert made[writers]._period == made[1]._period
