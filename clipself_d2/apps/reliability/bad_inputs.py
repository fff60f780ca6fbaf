"""Runs every bad input in a process of its own, forked after the imports, and judges the answer."""

import argparse
import json
import os
import runpy
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji
from clipself_d2.apps.reliability.bad_input_cases import COMMANDS, BadInput, cases
from clipself_d2.parts.json_file import write_json

ROOT = Path(__file__).resolve().parents[3]
SENTENCE, TAKEN, TRACEBACK, SILENT = "one sentence", "rightly taken", "traceback", "silent"
VERDICTS = (SENTENCE, TAKEN, TRACEBACK, SILENT)
PROCESSES = 2
# Seconds of a case, and most characters of a sentence.
_LIMIT, _LONGEST = 120, 2000


@dataclass(frozen=True)
class Verdict:
    """What became of a bad input.

    Attributes:
        kind: Kind of the input.
        name: The input.
        verdict: One of VERDICTS.
        answer: Last line of the command's output.
        exit_code: Of the command.
        reason: Why it may be taken.
    """

    kind: str
    name: str
    verdict: str
    answer: str
    exit_code: int
    reason: str = ""


def judge(case: BadInput, exit_code: int, output: str) -> Verdict:
    """Judge the answer of a command.

    Args:
        case: What it was given.
        exit_code: Its exit code.
        output: All that it wrote.

    Returns:
        The verdict; one sentence must stand in the last line and name what the case says.
    """
    lines = [line for line in output.splitlines() if line.strip()] or [""]
    last = lines[-1].strip()
    is_clear = "error: " in last and len(last) <= _LONGEST and "Traceback (most" not in output
    if exit_code == 0:
        verdict = TAKEN if case.taken and case.word in output else SILENT
    else:
        verdict = SENTENCE if is_clear and case.word in last and not case.taken else TRACEBACK
    return Verdict(case.kind, case.name, verdict, last[:300], exit_code, case.taken)


def run_bad_inputs(work_dir: Path, *, only: str = "") -> list[Verdict]:
    """Run the bad inputs in a fresh interpreter, over a tiny data set.

    Args:
        work_dir: Folder of what is written.
        only: Kind of input to run; empty for all.

    Returns:
        The verdicts, in the order of ``cases``.
    """
    work_dir = work_dir.resolve()
    prepare_emoji(work_dir / "data", EmojiOptions(train=6, val=3))
    report = work_dir / "bad_inputs.json"
    environment = dict(os.environ)
    environment |= {"DETECTRON2_DATASETS": str(work_dir / "data"), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", __name__, str(work_dir), str(report), "--only", only]
    subprocess.run(command, check=True, env=environment, cwd=ROOT)
    return [Verdict(**row) for row in json.loads(report.read_text(encoding="utf-8"))]


def count_verdicts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count the verdicts.

    Args:
        verdicts: Of ``run_bad_inputs``.

    Returns:
        Number by verdict, and "all".
    """
    found = Counter(verdict.verdict for verdict in verdicts)
    return {**{name: found[name] for name in VERDICTS}, "all": len(verdicts)}


def run_case(case: BadInput, folder: Path, data: Path) -> int:
    """Run one case; called in a process of its own.

    Args:
        case: The case.
        folder: Its folder, which is made.
        data: Folder of data sets.

    Returns:
        Exit code; the output goes to the terminal.
    """
    places = {"{case}": str(folder), "{data}": str(data), "{root}": str(ROOT)}

    def fill(text: str) -> str:
        for word, path in places.items():
            text = text.replace(word, path)
        return text

    for name, content in case.files.items():
        if isinstance(content, str):
            content = fill(content).encode()
        (folder / name).write_bytes(content)
    tool, flags, keys = COMMANDS[case.command]
    own = [fill(word) for word in case.arguments]
    # Flags go before the keys.
    is_flag = bool(own) and own[0].startswith("--") and case.kind != "config key"
    words = [fill(word) for word in flags.split()]
    words += own if is_flag else []
    words += [fill(word) for word in keys.split()] + ([] if is_flag else own)
    sys.argv = [str(ROOT / "tools" / f"{tool}.py"), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 99
    return 0


def _fork(action: Callable[[], int], output: Path) -> int:
    """Start a process that writes into a file and ends with the action's number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    target = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    code = 98
    try:
        code = action()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run_all(listed: Sequence[BadInput], work_dir: Path) -> list[Verdict]:
    waiting = list(enumerate(listed))
    running: dict[int, tuple[int, float]] = {}
    verdicts: dict[int, Verdict] = {}

    def output_of(number: int) -> Path:
        return work_dir / "cases" / f"{number:03d}" / "output.txt"

    while waiting or running:
        while waiting and len(running) < PROCESSES:
            number, case = waiting.pop(0)
            folder = output_of(number).parent
            folder.mkdir(parents=True, exist_ok=True)

            def action(case: BadInput = case, folder: Path = folder) -> int:
                return run_case(case, folder, work_dir / "data")

            running[_fork(action, output_of(number))] = (number, time.monotonic())
        child, status = os.waitpid(-1, os.WNOHANG)
        for late, (_, begin) in running.items():
            if time.monotonic() - begin > _LIMIT:
                os.kill(late, 9)
        if not child:
            time.sleep(0.02)
            continue
        number, _ = running.pop(child)
        text = output_of(number).read_text(encoding="utf-8", errors="replace")
        verdicts[number] = judge(listed[number], os.waitstatus_to_exitcode(status), text)
    return [verdicts[number] for number in range(len(listed))]


def main() -> None:
    """Run the cases in this interpreter and write the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    import clipself_d2.apps.predict.demo
    import clipself_d2.engine.distill_trainer
    import clipself_d2.engine.lazy  # noqa: F401  (what most commands need)

    listed = [case for case in cases() if args.only in ("", case.kind)]
    write_json(args.report, [vars(verdict) for verdict in _run_all(listed, args.work_dir)])


if __name__ == "__main__":
    main()
