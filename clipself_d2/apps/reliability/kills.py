"""Trainings that are killed and resumed: their weights must be those of an uninterrupted one.

Every method trains a few steps on a few pictures, once straight, then once for every moment: it is
killed there and goes on with --resume. The signals are real ones.
"""

import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji
from clipself_d2.apps.reliability.processes import DATASETS, REPOSITORY, start_tool
from clipself_d2.command_line.flags import count, positive
from clipself_d2_cli.flags import tool_parser

_DISTILL = "distill_train_net"
# Tool, recipe of configs/emoji, and the method's own keys.
METHODS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "distillation": (_DISTILL, "clipself_patches", ("INPUT.REGIONS.IMAGE_SIZES", "(96,)")),
    "detector": ("train_net", "fvit_untouched", ("INPUT.MIN_SIZE_TRAIN", "(96,)")),
    "regionclip": (
        _DISTILL,
        "regionclip",
        ("INPUT.REGIONS.SOURCE", "grid", "MODEL.REGIONCLIP.CONCEPTS", "{work}/concepts.txt")
        + ("INPUT.MIN_SIZE_TRAIN", "(96,)"),
    ),
    "cris": ("train_net", "cris", ("MODEL.CLIP.WEIGHTS", "", "INPUT.REFER_SIZE", "96")),
}
STEPS, PERIOD = 8, 2
COMMON: tuple[str, ...] = ("SOLVER.MAX_ITER", str(STEPS), "SOLVER.CHECKPOINT_PERIOD", str(PERIOD))
COMMON += ("SOLVER.IMS_PER_BATCH", "2", "DATASETS.TEST", "()")
CONCEPTS = "dog,9\ncar,8\napple,7\ntree,6\nhouse,5\n"
# Six kills of ten are kill -9; the others may tidy up. Exit codes by signal.
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL)
CODES: dict[int, int] = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
# Phases of a run: its start, what follows its first step, and what follows each checkpoint but the
# one at its end. One kill of five falls into the start, as many before the first checkpoint.
PHASES = 1 + STEPS // PERIOD
_STARTED = re.compile(r"Starting training from iteration (\d+)")
_LIMIT = 600.0


@dataclass(frozen=True)
class Kill:
    """A moment of a run's life, and what ends it.

    Attributes:
        phase: 0 before the first step, 1 after it, 1 + n after the n-th checkpoint.
        share: Part of that phase that has passed, 0 to 1.
        signum: Signal.
    """

    phase: int
    share: float
    signum: signal.Signals

    def __str__(self) -> str:
        before = ("the start", "the first step", f"checkpoint {self.phase - 1}")
        name = signal.Signals(self.signum).name
        return f"{name} at {self.share:.0%} of what follows {before[min(self.phase, 2)]}"


@dataclass(frozen=True)
class Life:
    """A run that has ended.

    Attributes:
        code: Exit code, as of subprocess.
        start: Seconds until the first step; all where there was none.
        total: Seconds altogether.
        first: Iteration of the first step; -1 where there was none.
    """

    code: int
    start: float
    total: float
    first: int = -1


def plan_kills(moments: int, seed: int) -> list[Kill]:
    """Draw as many moments, the same for a seed."""
    rng = np.random.default_rng(seed)
    # Every phase has its turn before one has its second.
    turns = [int(each) for _ in range(0, moments, PHASES) for each in rng.permutation(PHASES)]
    return [
        Kill(phase, float(rng.random()), SIGNALS[number % len(SIGNALS)])
        for number, phase in enumerate(turns[:moments])
    ]


def command_of(method: str, work_dir: Path, output: Path) -> list[str]:
    """Write the path of a training's tool and its arguments, without --resume."""
    tool, recipe, keys = METHODS[method]
    own = [key.format(work=work_dir) for key in keys]
    config = ["--config-file", str(REPOSITORY / f"configs/emoji/{recipe}.yaml")]
    keys = (*COMMON, *own, "OUTPUT_DIR", str(output))
    return [str(REPOSITORY / f"tools/{tool}.py"), *config, *keys]


def live(
    command: Sequence[str], work_dir: Path, log: Path, death: tuple[Kill, Life] | None
) -> Life:
    """Run a training to its end, or to its violent one.

    Args:
        command: As of ``command_of``.
        work_dir: Folder of the campaign, with the data sets.
        log: File of what it says.
        death: The kill, and the uninterrupted life that times it.
    """
    process = start_tool(command, work_dir, log)
    # The process makes its log itself, some time after it was started.
    while process.is_alive() and not log.is_file():
        time.sleep(0.001)
    begin, start, due, reached = time.perf_counter(), 0.0, None, 0
    while process.is_alive():
        age = time.perf_counter() - begin
        if not start and _first_step(log) >= 0:
            start = age
        if death is not None:
            kill, whole = death
            if due is None and (reached := _phase(log, reached)) >= kill.phase:
                due = age + kill.share * _length(whole, kill.phase)
            if due is not None and age >= due:
                os.kill(process.pid, kill.signum)
                death = None
        if age > _LIMIT:
            process.kill()
        time.sleep(0.005)
    process.join()
    total = time.perf_counter() - begin
    return Life(process.exitcode, start or total, total, _first_step(log))


def _first_step(log: Path) -> int:
    """Iteration at which a run begins, -1 before it tells."""
    found = _STARTED.search(log.read_text(encoding="utf-8", errors="replace"))
    return int(found[1]) if found else -1


def _phase(log: Path, reached: int) -> int:
    """The phase of a run that ``log`` belongs to, as of ``Kill``; the log names every file."""
    if reached == 0:
        return int(_first_step(log) >= 0)
    # Checkpoints appear under their names when they are whole.
    return 1 + len(list(log.with_suffix("").glob("model_*[0-9].pth")))


def _length(whole: Life, phase: int) -> float:
    """Seconds that a phase takes in an uninterrupted run, rather fewer: a run may be faster."""
    return whole.start if phase == 0 else (whole.total - whole.start) / PHASES


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a finished training's OUTPUT_DIR."""
    content = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content["model"]
    return weights


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """Say in what two sets of weights differ, bit for bit; "" where they do not."""
    if first.keys() != second.keys():
        return "other names"
    unequal = [key for key in first if not torch.equal(first[key], second[key])]
    if not unequal:
        return ""
    most = max(float((first[key].double() - second[key].double()).abs().max()) for key in unequal)
    return f"{len(unequal)} tensors differ, by {most:.1e} at most"


def survive(
    method: str, work_dir: Path, kill: Kill, whole: Life, name: str
) -> tuple[str, Life, Life]:
    """Kill a training, resume it, and compare it with the uninterrupted one.

    Returns:
        What went wrong, "" where nothing did; the life that was ended, and that which went on.
    """
    folder = work_dir / method / name
    command = command_of(method, work_dir, folder)
    killed = live(command, work_dir, folder.with_suffix(".txt"), (kill, whole))
    log = folder.with_suffix(".resumed.txt")
    resumed = live([command[0], "--resume", *command[1:]], work_dir, log, None)
    # A SIGTERM before Python listens ends the process as the system does.
    allowed = {0, CODES[kill.signum]} | ({-kill.signum} if kill.phase == 0 else set())
    if killed.code not in allowed:
        return f"exit code {killed.code}", killed, resumed
    if resumed.code != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        return f"no resume: {said[-1]}", killed, resumed
    if not (folder / "model_final.pth").is_file():
        return "resumed without a model_final.pth", killed, resumed
    wrong = difference(weights_of(work_dir / method / "straight"), weights_of(folder))
    # Nor may a half-written file be left behind.
    wrong = wrong or ", ".join(path.name for path in folder.glob(".*.part"))
    if not wrong:
        shutil.rmtree(folder)
    return wrong, killed, resumed


def run_kills(
    work_dir: str | Path,
    moments: int = 20,
    methods: Sequence[str] = tuple(METHODS),
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Run the campaign.

    Args:
        work_dir: Folder of data sets, runs and logs.
        moments: Kills of each method, 1 or more.
        methods: Keys of METHODS.
        seed: Seed of the moments.

    Returns:
        By method: ``kills`` (runs that a signal ended), ``checkpoints`` (kills after which one was
        resumed), ``survived`` (to the same bits), ``seconds`` of a kill and its resume, and
        ``failures``, a sentence each.
    """
    work_dir = Path(work_dir).resolve()
    prepare_emoji(work_dir / DATASETS, EmojiOptions(train=8, val=2, seed=0))
    (work_dir / "concepts.txt").write_text(CONCEPTS, encoding="utf-8")
    report: dict[str, dict[str, Any]] = {}
    for number, method in enumerate(methods):
        folder = work_dir / method
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = folder / "straight.txt"
        whole = live(command_of(method, work_dir, folder / "straight"), work_dir, log, None)
        if whole.code != 0:
            raise ValueError(f"{method} does not train, even without a kill; see {log}")
        report[method] = _count(method, work_dir, whole, plan_kills(moments, seed + number))
    return report


def _count(method: str, work_dir: Path, whole: Life, kills: Sequence[Kill]) -> dict[str, Any]:
    """A method's row of the report."""
    ended: list[Life] = []
    survived, seconds, failures = 0, 0.0, []
    for number, kill in enumerate(kills):
        wrong, killed, resumed = survive(method, work_dir, kill, whole, f"kill_{number:03d}")
        seconds += killed.total + resumed.total
        failures += [f"{kill}: {wrong}"] if wrong else []
        # A run that was done before the signal came was not killed.
        if killed.code != 0:
            ended.append(resumed)
            survived += not wrong
    return {
        "kills": len(ended),
        "checkpoints": sum(life.first > 0 for life in ended),
        "survived": survived,
        "seconds": round(seconds / len(kills), 1),
        "failures": failures,
    }


def format_table(report: dict[str, dict[str, Any]]) -> str:
    """Write the report of ``run_kills`` as a table, failures below."""
    heads = ("method", "kills", "behind a checkpoint", "resumed to equal bits", "seconds")
    keys = ("kills", "checkpoints", "survived", "seconds")
    table = [heads, *((name, *(str(row[key]) for key in keys)) for name, row in report.items())]
    lines = ["{:<13} {:>6} {:>20} {:>22} {:>8}".format(*row) for row in table]
    lines += [f"{name}: {failure}" for name, row in report.items() for failure in row["failures"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign from a command line; 0 if every kill was survived."""
    parser = tool_parser(__doc__, "python -m clipself_d2.apps.reliability.kills --moments 20")
    parser.add_argument("--work", type=Path, default=Path("output/kills"), help="folder to work in")
    parser.add_argument("--moments", type=positive, default=20, help="kills of each method")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seed", type=count, default=0, help="seed of the moments")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    report = run_kills(args.work, args.moments, args.methods, args.seed)
    sys.stdout.write(format_table(report) + "\n")
    return int(any(row["failures"] for row in report.values()))


if __name__ == "__main__":
    sys.exit(main())
