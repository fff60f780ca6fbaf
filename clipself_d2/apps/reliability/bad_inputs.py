"""Runs every bad input in a process of its own and judges the answer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji
from clipself_d2.apps.reliability.bad_input_cases import COMMANDS, BadInput, cases
from clipself_d2.apps.reliability.processes import DATASETS, REPOSITORY, end_tool, start_tool

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
    """Judge a command by its last line, which must name what the case says."""
    lines = [line for line in output.splitlines() if line.strip()] or [""]
    last = lines[-1].strip()
    is_clear = "error: " in last and len(last) <= _LONGEST and "Traceback (most" not in output
    if exit_code == 0:
        verdict = TAKEN if case.taken and case.word in output else SILENT
    else:
        verdict = SENTENCE if is_clear and case.word in last and not case.taken else TRACEBACK
    return Verdict(case.kind, case.name, verdict, last[:300], exit_code, case.taken)


def run_bad_inputs(work_dir: Path, *, only: str = "") -> list[Verdict]:
    """Run the bad inputs of one kind, "" for all, over a tiny data set."""
    work_dir = work_dir.resolve()
    prepare_emoji(work_dir / DATASETS, EmojiOptions(train=6, val=3))
    listed = [case for case in cases() if only in ("", case.kind)]
    verdicts = []
    for first in range(0, len(listed), PROCESSES):
        running = []
        for number, case in enumerate(listed[first : first + PROCESSES], start=first):
            folder = work_dir / "cases" / f"{number:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            command, log = command_of(case, folder, work_dir / DATASETS), folder / "output.txt"
            running.append((case, start_tool(command, work_dir, log), log))
        for case, process, log in running:
            verdicts.append(judge(case, *end_tool(process, log, _LIMIT)))
    return verdicts


def count_verdicts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count by verdict, and "all"."""
    found = Counter(verdict.verdict for verdict in verdicts)
    return {**{name: found[name] for name in VERDICTS}, "all": len(verdicts)}


def command_of(case: BadInput, folder: Path, data: Path) -> list[str]:
    """Write a case's files into its folder, and the path of its tool with the arguments."""
    places = {"{case}": str(folder), "{data}": str(data), "{root}": str(REPOSITORY)}

    def fill(text: str) -> str:
        for word, path in places.items():
            text = text.replace(word, path)
        return text

    for name, content in case.files.items():
        given = fill(content).encode() if isinstance(content, str) else content
        (folder / name).write_bytes(given)
    tool, flags, keys = COMMANDS[case.command]
    # Flags go before the keys.
    is_flag = case.arguments.startswith("--") and case.kind != "config key"
    parts = (flags, case.arguments, keys) if is_flag else (flags, keys, case.arguments)
    # Split first: the path of a folder may hold spaces.
    return [str(REPOSITORY / "tools" / f"{tool}.py"), *map(fill, " ".join(parts).split())]
