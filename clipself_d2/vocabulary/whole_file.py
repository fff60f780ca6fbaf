"""Files that appear under their names when they are whole."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Ending of what is being written, ``.<name>.<any>.part``; the next run in a folder clears it.
BESIDE = ".part"


@contextmanager
def whole_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write a file ("w" for UTF-8 text, or "wb") and put it there when it is whole and on the disk.

    What the path held stays until then; if the block raises, nothing is left. An OSError says that
    the disk is full, or the folder is gone or may not be written to.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{BESIDE}")
    try:
        with beside.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        reason = _os_error(error)
        if reason is None:
            raise
        raise OSError(
            f"{path} cannot be written: {reason.strerror or reason}; free or name another folder"
        ) from error


def _sync(folder: Path) -> None:
    """Put the names of a folder on the disk, where its file system lets folders be opened."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _os_error(error: BaseException | None) -> OSError | None:
    """What the system said; torch's writer wraps it in an error of its own."""
    while isinstance(error, Exception) and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, OSError) else None
