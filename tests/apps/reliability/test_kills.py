import signal
import sys
from pathlib import Path

import pytest
import torch

from clipself_d2.apps.reliability.kills import (
    METHODS,
    Kill,
    Life,
    _moment,
    command_of,
    difference,
    format_table,
    live,
    main,
    plan_kills,
    run_kills,
)
from clipself_d2.engine.cli import load_config

ROOT = Path(__file__).parents[3]


def test_the_moments_are_those_of_the_seed_and_of_every_kind() -> None:
    kills = plan_kills(40, 1)
    assert kills == plan_kills(40, 1) != plan_kills(40, 2)
    assert {kill.signum for kill in kills} == {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}
    assert 2 <= sum(kill.is_early for kill in kills) <= 20


def test_a_kill_waits_for_the_phase_that_it_is_meant_for() -> None:
    whole = Life(0, 10.0, 14.0)
    assert _moment(Kill(True, 0.5, 9), whole, 0.0) == 5.0
    assert _moment(Kill(False, 0.5, 9), whole, 0.0) is None
    assert _moment(Kill(False, 0.5, 9), whole, 12.0) == 14.0


def test_a_difference_of_one_bit_counts() -> None:
    first = {"a": torch.ones(3), "b": torch.zeros(2)}
    second = {key: value.clone() for key, value in first.items()}
    assert difference(first, second) == ""
    second["a"][0] = torch.nextafter(second["a"][0], torch.tensor(2.0))
    assert difference(first, second) == "1 tensors differ, by 1.2e-07 at most"
    assert difference(first, {"a": first["a"]}) == "other names"


@pytest.mark.parametrize("method", METHODS)
def test_the_commands_name_keys_that_are_there(method, tmp_path) -> None:
    command = command_of(method, tmp_path, tmp_path / "out")
    config = ROOT / command[command.index("--config-file") + 1]
    cfg = load_config(str(config), command[command.index("--config-file") + 2 :])
    assert cfg.SOLVER.MAX_ITER == 12
    assert str(tmp_path / "out") == cfg.OUTPUT_DIR
    assert (ROOT / command[1]).is_file()


def test_a_process_is_killed_after_its_first_step(tmp_path) -> None:
    program = "import time\nprint('Starting training from iteration 0', flush=True)\ntime.sleep(60)"
    command = [sys.executable, "-c", program]
    kill = Kill(False, 0.5, signal.SIGKILL)
    life = live(command, tmp_path, tmp_path / "log.txt", (kill, Life(0, 1.0, 1.4)))
    assert life.code == -9
    assert life.total - life.start >= 0.2


def test_the_table_lists_failures() -> None:
    row = {"kills": 2, "survived": 1, "failures": ["SIGKILL at 5% of the start: other names"]}
    table = format_table({"cris": row})
    assert table.splitlines()[1].split() == ["cris", "2", "1"]
    assert table.endswith("cris: SIGKILL at 5% of the start: other names")


def test_wrong_words_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="--moments is 0"):
        run_kills(tmp_path, moments=0)
    with pytest.raises(ValueError, match="distillation, detector"):
        run_kills(tmp_path, methods=["fcos"])
    with pytest.raises(SystemExit):
        main(["--methods", "fcos"])


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.parametrize("method", METHODS)
def test_killed_trainings_come_back_to_the_same_bits(method, tmp_path) -> None:
    report = run_kills(tmp_path, moments=2, methods=[method])
    assert report[method]["failures"] == []
