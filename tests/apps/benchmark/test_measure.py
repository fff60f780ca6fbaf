import sys
import time

import pytest
import torch

from clipself_d2.apps.benchmark.measure import (
    MIB,
    clock,
    compute_type,
    machine,
    matrix_peak,
    median_seconds,
    peak_memory,
)


def test_steps_take_turns_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter(
        [0.0, 100.0, 0.0, 1.0, 1.0, 5.0, 5.0, 8.0, 8.0, 9.0, 9.0, 11.0, 11.0, 19.0, 19.0, 20.0]
    )
    monkeypatch.setattr("clipself_d2.apps.benchmark.measure.clock", lambda _: ticks.__next__)
    calls: list[str] = []
    steps = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = median_seconds(steps, 3, "cpu")
    assert calls == ["a", "b"] * 4
    assert seconds == {"a": 2.0, "b": 4.0}
    median_seconds({"a": steps["a"]}, 1, "cpu", warm_up=False)
    assert calls == ["a", "b"] * 4 + ["a"]


def test_no_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="--repeats is 0"):
        median_seconds({}, 0, "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_counts_the_weights_and_the_step_does_not() -> None:
    def build():
        weights = torch.ones(64, MIB // 4)

        def step() -> float:
            return float((torch.ones(160, MIB // 4) * 2).sum() + weights.sum())

        return step

    memory = peak_memory(build, device="cpu", isolated=False)
    # The product is a second tensor of 160 MiB.
    assert memory.step / MIB == pytest.approx(320, abs=40)
    assert (memory.total - memory.step) / MIB == pytest.approx(64, abs=40)


def test_precision_names_a_number_type() -> None:
    assert compute_type("cpu", "fp32") is torch.float32
    assert compute_type("cpu", "bf16") is torch.bfloat16
    assert compute_type("cuda", "auto") is torch.bfloat16
    assert compute_type("cuda", "fp16") is torch.float16


def test_the_peak_is_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipself_d2.apps.benchmark.measure._PEAK_SIDE", {"cpu": 64, "cuda": 64})
    ticks = iter(range(14))
    monkeypatch.setattr("clipself_d2.apps.benchmark.measure.clock", lambda _: ticks.__next__)
    assert matrix_peak("cpu", torch.float32) == 2 * 64**3


def test_one_thread_is_measured_by_the_processors_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert clock("cpu") is time.process_time
    assert clock("cuda") is time.perf_counter
    assert machine("cpu")["clock"] == "processor"
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert clock("cpu") is time.perf_counter


def test_the_machine_is_named() -> None:
    assert machine("cpu")["torch"] == torch.__version__
    assert str(machine("cpu")["device"]).startswith("CPU")
