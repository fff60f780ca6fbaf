"""The folder of a run: who works in it, whose its checkpoints are, and files whole or not there."""

import fcntl
import json
import logging
import os
import socket
import uuid
from pathlib import Path
from typing import IO, Any

from clipself_d2.parts.words import shortened
from clipself_d2.vocabulary.whole_file import BESIDE, whole_file

logger = logging.getLogger(__name__)

RUN_FILE, LOCK_FILE = "run.json", ".lock"
# The names are fvcore's.
LAST_CHECKPOINT, CHECKPOINTS = "last_checkpoint", "model_*.pth"
_held: dict[Path, IO[str]] = {}


class WholeFiles:
    """A path manager of iopath whose local files are written by ``whole_file``."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **options: Any) -> Any:
        """Open a local path, or an address that the path manager knows, in a with block."""
        if "w" in mode and "://" not in path:
            return whole_file(path, mode)
        return self._manager.open(path, mode, **options)


def claim_folder(folder: str, key: str = "OUTPUT_DIR") -> None:
    """Make a folder this process's until it ends, and clear what killed runs left half-written.

    A process that is killed leaves no claim behind, nor do its children keep it. A ValueError says
    that another process has it, an OSError that it cannot be written to.
    """
    path = Path(folder).resolve()
    if path in _held and os.fstat(_held[path].fileno()).st_nlink:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise OSError(
            f"{key} {folder} cannot be written to: {error.strerror}; name another folder"
        ) from error
    try:
        # A lock of fcntl's is the process's own: workers of a loader, which may outlive a killed
        # run by seconds, do not inherit it as they would one of flock.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        lock.close()
        raise ValueError(
            f"{key} {folder} is in use by {owner}; wait for it, or name another folder"
        ) from error
    except OSError as error:
        logger.warning("%s %s cannot be locked (%s); start one run in it", key, folder, error)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    _held[path] = lock
    for leftover in path.glob(f".*{BESIDE}"):
        leftover.unlink(missing_ok=True)
        logger.info("Removed %s, which a killed run left half-written", leftover)


def read_run(folder: str | Path) -> str:
    """Tell the id of the run whose the checkpoints of a folder are; "" where it has none."""
    try:
        return str(json.loads((Path(folder) / RUN_FILE).read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def name_run(folder: str | Path, name: str = "") -> str:
    """Write the id of a run, a fresh one where it is empty, into its folder."""
    name = name or uuid.uuid4().hex[:12]
    with whole_file(Path(folder) / RUN_FILE) as file:
        json.dump({"id": name}, file)
    return name


def checkpoints_of(folder: str | Path) -> list[Path]:
    """List what a run goes on from, whole or not, and the file that names the last."""
    return [*Path(folder).glob(CHECKPOINTS), *Path(folder).glob(LAST_CHECKPOINT)]


def begin_run(folder: str | Path) -> str:
    """Begin at iteration 0: checkpoints that the folder has are set aside, not overwritten."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = checkpoints_of(folder)
    # The id comes first: killed after it, the folder's checkpoints are seen to be of another run.
    name = name_run(folder)
    if earlier:
        aside = folder / f"before_{name}"
        aside.mkdir()
        for path in earlier:
            os.replace(path, aside / path.name)
        logger.warning(
            "A new run (%s) begins in %s, which has checkpoints of an earlier one: they are moved "
            "to %s (%s); log.txt and metrics.json are continued, other files are overwritten. "
            "--resume would have gone on with the earlier run",
            name, folder, aside, shortened([path.name for path in earlier]),
        )  # fmt: skip
    return name
