import sys
import time

import pytest
import torch

from clipself_d2.apps.benchmark import measure
from clipself_d2.apps.benchmark.measure import (
    MIB,
    BenchmarkOptions,
    clock,
    machine,
    matrix_peak,
    median_seconds,
    peak_memory,
)


def test_steps_take_turns_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Starts of the round that does not count have no end.
    ticks = iter([0.0, 0.0, *(0.0, 1.0, 1.0, 5.0), *(5.0, 8.0, 8.0, 9.0), *(9.0, 11.0, 11.0, 19.0)])
    monkeypatch.setattr(measure, "clock", lambda _: ticks.__next__)
    calls: list[str] = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert median_seconds(steps, 3, "cpu") == {"a": 2.0, "b": 4.0}
    assert calls == ["a", "b"] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_counts_the_weights_and_the_step_does_not() -> None:
    def build():
        weights = torch.ones(64, MIB // 4)

        def step() -> float:
            return float((torch.ones(160, MIB // 4) * 2).sum() + weights.sum())

        return step

    memory = peak_memory(build, options=BenchmarkOptions(isolated=False))
    # The product is a second tensor of 160 MiB.
    assert memory.step == pytest.approx(320, abs=40)
    assert memory.total - memory.step == pytest.approx(64, abs=40)


def test_the_peak_is_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PEAK_SIDE", {"cpu": 64})
    ticks = iter(range(14))
    monkeypatch.setattr(measure, "clock", lambda _: ticks.__next__)
    assert matrix_peak("cpu", torch.float32) == 2 * 64**3


def test_one_thread_is_measured_by_the_processors_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert clock("cpu") is time.process_time
    assert machine("cpu")["clock"] == "processor"
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert clock("cpu") is time.perf_counter
    assert str(machine("cpu")["device"]).startswith("CPU")
