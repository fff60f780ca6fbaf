import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from clipself_d2.apps.reliability import processes
from clipself_d2.apps.reliability.kills import (
    METHODS,
    PHASES,
    STEPS,
    Kill,
    Life,
    _phase,
    command_of,
    difference,
    format_table,
    live,
    main,
    plan_kills,
    run_kills,
    weights_of,
)
from clipself_d2.engine.cli import load_config


def test_the_moments_are_those_of_the_seed_and_of_every_kind() -> None:
    planned = plan_kills(40, 1)
    assert planned == plan_kills(40, 1) != plan_kills(40, 2)
    assert {kill.signum for kill in planned} == {signal.SIGKILL, signal.SIGTERM, signal.SIGINT}
    assert [sum(kill.phase == phase for kill in planned) for phase in range(PHASES)] == [8] * PHASES


def test_a_phase_is_told_by_the_first_step_and_the_checkpoints(tmp_path) -> None:
    log, folder = tmp_path / "kill_000.txt", tmp_path / "kill_000"
    folder.mkdir()
    log.write_text("Config")
    assert _phase(log, 0) == 0
    log.write_text("Starting training from iteration 0")
    assert _phase(log, 0) == 1
    for name in ("model_0000001.pth", ".model_0000003.pth.1.part", "model_final.pth"):
        (folder / name).touch()
    assert _phase(log, 1) == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_commands_name_keys_that_are_there(method, tmp_path) -> None:
    command = command_of(method, tmp_path, tmp_path / "out")
    config = command[command.index("--config-file") + 1]
    cfg = load_config(str(config), command[command.index("--config-file") + 2 :])
    assert cfg.SOLVER.MAX_ITER == STEPS
    assert str(tmp_path / "out") == cfg.OUTPUT_DIR
    assert Path(command[0]).is_file()


def test_a_process_is_killed_behind_its_checkpoint(tmp_path, monkeypatch) -> None:
    # This tool needs none of what the nursery imports first.
    monkeypatch.setattr(processes, "_nursery", lambda: get_context("fork"))
    tool, folder = tmp_path / "tool.py", tmp_path / "kill_000"
    folder.mkdir()
    tool.write_text(
        "import sys, time\nprint('Starting training from iteration 4', flush=True)\n"
        "time.sleep(0.3)\nopen(sys.argv[1], 'w').close()\ntime.sleep(60)\n"
    )
    command = [str(tool), str(folder / "model_0000005.pth")]
    kill = Kill(2, 0.5, signal.SIGKILL)
    log = folder.with_suffix(".txt")
    life = live(command, tmp_path, log, (kill, Life(0, 1.0, 1.0 + 0.4 * PHASES)))
    assert (life.code, life.first) == (-9, 4)
    assert life.total - life.start >= 0.4


def test_the_table_lists_failures() -> None:
    row = {"kills": 2, "checkpoints": 1, "survived": 1, "seconds": 3.5}
    row["failures"] = [f"{Kill(2, 0.05, signal.SIGKILL)}: other names"]
    table = format_table({"cris": row})
    assert table.splitlines()[1].split() == ["cris", "2", "1", "1", "3.5"]
    assert table.endswith("cris: SIGKILL at 5% of what follows checkpoint 1: other names")


def test_wrong_words_are_refused() -> None:
    for words in (["--moments", "0"], ["--methods", "fcos"]):
        with pytest.raises(SystemExit):
            main(words)


def test_a_difference_of_one_bit_counts(tmp_path) -> None:
    first = {"a": torch.ones(3), "b": torch.zeros(2)}
    torch.save({"model": first, "iteration": 3}, tmp_path / "model_final.pth")
    second = weights_of(tmp_path)
    assert difference(first, second) == ""
    second["a"][0] = torch.nextafter(second["a"][0], torch.tensor(2.0))
    assert difference(first, second) == "1 tensors differ, by 1.2e-07 at most"
    assert difference(first, {"a": first["a"]}) == "other names"


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.parametrize("method", METHODS)
def test_killed_trainings_come_back_to_the_same_bits(method, tmp_path) -> None:
    report = run_kills(tmp_path, moments=2, methods=[method])
    assert report[method]["failures"] == []
