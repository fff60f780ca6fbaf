"""Trainings that are killed and resumed: their weights must be those of an uninterrupted one.

Every method trains a few steps on a few pictures, once straight, then once for every moment: it is
killed there and goes on with --resume.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji
from clipself_d2.engine.cli import tool_parser

REPOSITORY = Path(__file__).parents[3]
# Tool, recipe of configs/emoji, and the method's own keys.
METHODS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "distillation": (
        "distill_train_net",
        "clipself_patches",
        ("INPUT.REGIONS.IMAGE_SIZES", "(96,)"),
    ),
    "detector": ("train_net", "fvit_untouched", ("INPUT.MIN_SIZE_TRAIN", "(96,)")),
    "regionclip": (
        "distill_train_net",
        "regionclip",
        ("INPUT.REGIONS.SOURCE", "grid", "MODEL.REGIONCLIP.CONCEPTS", "{work}/concepts.txt")
        + ("INPUT.MIN_SIZE_TRAIN", "(96,)"),
    ),
    "cris": ("train_net", "cris", ("MODEL.CLIP.WEIGHTS", "", "INPUT.REFER_SIZE", "96")),
}
COMMON = ("SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.IMS_PER_BATCH", "2")
COMMON += ("DATASETS.TEST", "()")
CONCEPTS = "dog,9\ncar,8\napple,7\ntree,6\nhouse,5\n"
# Most kills are kill -9; two of ten may tidy up. Exit codes by signal.
SIGNALS = (signal.SIGKILL,) * 4 + (signal.SIGTERM,) + (signal.SIGKILL,) * 4 + (signal.SIGINT,)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
# One kill of five comes while the process starts, the others from its first step to its end.
EARLY_SHARE = 0.2
_STARTED = "Starting training from iteration"
_LIMIT = 600.0


@dataclass(frozen=True)
class Kill:
    """A moment of a run's life, and what ends it.

    Attributes:
        is_early: Whether the moment is before the first step.
        share: Part of that phase that has passed, 0 to 1.
        signum: Signal.
    """

    is_early: bool
    share: float
    signum: int


@dataclass(frozen=True)
class Life:
    """A run that has ended.

    Attributes:
        code: Exit code, as of subprocess.
        start: Seconds until the first step; all where there was none.
        total: Seconds altogether.
    """

    code: int
    start: float
    total: float


def plan_kills(moments: int, seed: int) -> list[Kill]:
    """Draw the moments.

    Args:
        moments: Their number.
        seed: Seed.

    Returns:
        The kills, the same for a seed.
    """
    rng = np.random.default_rng(seed)
    kills = []
    for number in range(moments):
        is_early = bool(rng.random() < EARLY_SHARE)
        kills.append(Kill(is_early, float(rng.random()), SIGNALS[number % len(SIGNALS)]))
    return kills


def command_of(method: str, work_dir: Path, output: Path) -> list[str]:
    """Write the command of a training.

    Args:
        method: A key of METHODS.
        work_dir: Folder of the campaign.
        output: OUTPUT_DIR.

    Returns:
        The command without --resume.
    """
    tool, recipe, keys = METHODS[method]
    own = [key.format(work=work_dir) for key in keys]
    config = ["--config-file", f"configs/emoji/{recipe}.yaml"]
    return [sys.executable, f"tools/{tool}.py", *config, *COMMON, *own, "OUTPUT_DIR", str(output)]


def live(
    command: Sequence[str], work_dir: Path, log: Path, death: tuple[Kill, Life] | None
) -> Life:
    """Run a training to its end, or to its violent one.

    Args:
        command: The command.
        work_dir: Folder of the campaign, with the data sets.
        log: File of what it says.
        death: The kill, and the uninterrupted life that times it.

    Returns:
        What became of it.
    """
    environment = {**os.environ, "DETECTRON2_DATASETS": str(work_dir / "datasets")}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    begin, start, due = time.perf_counter(), 0.0, None
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            age = time.perf_counter() - begin
            if not start and _STARTED in log.read_text(encoding="utf-8"):
                start = age
            if death is not None:
                due = due if due is not None else _moment(*death, start)
                if due is not None and age >= due:
                    process.send_signal(death[0].signum)
                    death = None
            if age > _LIMIT:
                process.kill()
            time.sleep(0.005)
    total = time.perf_counter() - begin
    return Life(process.returncode, start or total, total)


def _moment(kill: Kill, whole: Life, start: float) -> float | None:
    """Age at which a run is killed, seconds; None until its first step tells."""
    if kill.is_early:
        return kill.share * whole.start
    return start + kill.share * (whole.total - whole.start) if start else None


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a finished training.

    Args:
        folder: Its OUTPUT_DIR.

    Returns:
        Tensors by name.
    """
    content = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content["model"]
    return weights


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """Compare two sets of weights bit for bit.

    Args:
        first: Tensors by name.
        second: Others.

    Returns:
        What differs; "" where nothing does.
    """
    if first.keys() != second.keys():
        return "other names"
    unequal = [key for key in first if not torch.equal(first[key], second[key])]
    if not unequal:
        return ""
    most = max(float((first[key].double() - second[key].double()).abs().max()) for key in unequal)
    return f"{len(unequal)} tensors differ, by {most:.1e} at most"


def survive(method: str, work_dir: Path, kill: Kill, whole: Life, name: str) -> str:
    """Kill a training, resume it, and compare it.

    Args:
        method: A key of METHODS.
        work_dir: Folder of the campaign, with the uninterrupted run.
        kill: When and how.
        whole: The uninterrupted run's life.
        name: Name of the run's folder.

    Returns:
        What went wrong; "" where nothing did.
    """
    folder = work_dir / method / name
    command = command_of(method, work_dir, folder)
    killed = live(command, work_dir, folder.with_suffix(".killed.txt"), (kill, whole))
    # A SIGTERM or SIGINT before Python listens ends the process as the system does.
    allowed = {0, CODES[kill.signum], -kill.signum} if kill.is_early else {0, CODES[kill.signum]}
    if killed.code not in allowed:
        return f"exit code {killed.code}"
    command.insert(2, "--resume")
    log = folder.with_suffix(".resumed.txt")
    if live(command, work_dir, log, None).code != 0:
        return "no resume: " + (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]
    wrong = difference(weights_of(work_dir / method / "straight"), weights_of(folder))
    left = [path.name for path in folder.glob(".*.part")]
    shutil.rmtree(folder)
    return wrong or ", ".join(left)


def run_kills(
    work_dir: str | Path,
    moments: int = 20,
    methods: Sequence[str] = tuple(METHODS),
    seed: int = 0,
) -> dict[str, dict[str, object]]:
    """Run the campaign.

    Args:
        work_dir: Folder of data sets, runs and logs.
        moments: Kills of each method.
        methods: Keys of METHODS.
        seed: Seed of the moments.

    Returns:
        By method: ``kills``, ``survived`` (resumed to the same bits) and ``failures``, one sentence
        each.

    Raises:
        ValueError: If a method is unknown, or its uninterrupted run fails.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or moments < 1:
        raise ValueError(
            f"--moments is {moments} and --methods {list(methods)}; they are 1 or more, and of "
            f"{', '.join(METHODS)}"
        )
    work_dir = Path(work_dir).resolve()
    prepare_emoji(work_dir / "datasets", EmojiOptions(train=8, val=2, seed=0))
    (work_dir / "concepts.txt").write_text(CONCEPTS, encoding="utf-8")
    report: dict[str, dict[str, object]] = {}
    for number, method in enumerate(methods):
        folder = work_dir / method
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = folder / "straight.txt"
        whole = live(command_of(method, work_dir, folder / "straight"), work_dir, log, None)
        if whole.code != 0:
            raise ValueError(f"{method} does not train, even without a kill; see {log}")
        failures = []
        for count, kill in enumerate(plan_kills(moments, seed + 1000 * number)):
            wrong = survive(method, work_dir, kill, whole, f"kill_{count:03d}")
            if wrong:
                phase = "start" if kill.is_early else "training"
                name = signal.Signals(kill.signum).name
                failures.append(f"{name} at {kill.share:.0%} of the {phase}: {wrong}")
        report[method] = {
            "kills": moments,
            "survived": moments - len(failures),
            "failures": failures,
        }
    return report


def format_table(report: dict[str, dict[str, object]]) -> str:
    """Write the report as a table.

    Args:
        report: As of ``run_kills``.

    Returns:
        Lines of text, failures below.
    """
    lines = [f"{'method':<14} {'kills':>6} {'resumed to equal bits':>22}"]
    lines += [f"{name:<14} {row['kills']:>6} {row['survived']:>22}" for name, row in report.items()]
    for name, row in report.items():
        lines += [f"{name}: {failure}" for failure in _failures(row)]
    return "\n".join(lines)


def _failures(row: dict[str, object]) -> list[str]:
    failures = row["failures"]
    return failures if isinstance(failures, list) else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Be a command.

    Args:
        arguments: Of the command line; None takes those of the process.

    Returns:
        Exit code: 0 if every kill was survived.
    """
    parser = tool_parser(__doc__, "python -m clipself_d2.apps.reliability.kills --moments 20")
    parser.add_argument("--work", type=Path, default=Path("output/kills"), help="folder to work in")
    parser.add_argument("--moments", type=int, default=20, help="kills of each method")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args(arguments)
    report = run_kills(args.work, args.moments, args.methods, args.seed)
    sys.stdout.write(format_table(report) + "\n")
    return int(any(_failures(row) for row in report.values()))


if __name__ == "__main__":
    sys.exit(main())
