"""Tools as processes, forked from one that has imported everything, which takes longest."""

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from functools import cache
from multiprocessing import forkserver, get_context, set_start_method
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[3]
# Folder of data sets below that of a campaign, in which its tools run.
DATASETS = "datasets"
_PRELOADED = (
    "clipself_d2.apps.predict.demo",
    "clipself_d2.engine.distill_trainer",
    "clipself_d2.engine.lazy",
)


@cache
def _nursery() -> Any:
    """Start the process that has imported everything."""
    before = dict(os.environ)
    context = get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    os.environ |= {
        "DETECTRON2_DATASETS": DATASETS,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), before.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "ignore",
    }
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


def start_tool(command: Sequence[str], folder: Path, log: Path) -> Any:
    """Start the process of a script with arguments, in a folder, with a file for what it says."""
    log.unlink(missing_ok=True)
    process = _nursery().Process(target=_be_tool, args=(command, folder, log))
    process.start()
    return process


def end_tool(process: Any, log: Path, limit: float) -> tuple[int, str]:
    """Wait for a tool, at most so many seconds; its exit code and what it said."""
    process.join(limit)
    process.kill()
    process.join()
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return process.exitcode, said


def _be_tool(command: Sequence[str], folder: Path, log: Path) -> None:
    # The loaders' workers are forked, as in a process that was not.
    set_start_method("fork", force=True)
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    sys.argv = list(command)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
