"""Which errors are the user's, and the one sentence that reports each."""

import builtins
import traceback

import torch
import yaml
from torch.multiprocessing.spawn import ProcessRaisedException

USER_ERRORS = (
    ValueError,
    OSError,
    yaml.YAMLError,
    RecursionError,
    FloatingPointError,
    torch.OutOfMemoryError,
)
# Libraries that tell users what is wrong by assertions and KeyErrors.
_SPEAKERS = {"detectron2", "fvcore", "yacs"}
_MOST_CHARACTERS = 1500


def is_users(error: BaseException) -> bool:
    """Tell errors of users, of which a sentence says all, from errors of the code."""
    if isinstance(error, ProcessRaisedException):
        kind = getattr(builtins, _last_line(error)[0].rpartition(".")[2], None)
        return isinstance(kind, type) and issubclass(kind, USER_ERRORS)
    return isinstance(error, USER_ERRORS) or _is_said_by_library(error)


def _is_said_by_library(error: BaseException) -> bool:
    """A failed assertion or look-up of Detectron2 that comes with words."""
    if not isinstance(error, AssertionError | KeyError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    speaker = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return speaker in _SPEAKERS and len(_text(error).split()) > 2


def sentence(error: BaseException) -> str:
    """Say in one line, of bounded length, what is wrong."""
    text = " ".join(_told(error).split())
    more = len(text) - _MOST_CHARACTERS
    return text if more <= 0 else f"{text[:_MOST_CHARACTERS]} ... ({more} more characters)"


def _told(error: BaseException) -> str:
    text = _text(error)
    first = text.partition("\n")[0]
    if isinstance(error, ProcessRaisedException) or "worker process" in first:
        return _last_line(error)[1]
    if isinstance(error, FloatingPointError):
        return (
            f"{first} The training diverges; lower SOLVER.BASE_LR, raise SOLVER.WARMUP_ITERS, or "
            "clip gradients (SOLVER.CLIP_GRADIENTS)"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return f"{first} Lower SOLVER.IMS_PER_BATCH, or raise SOLVER.ACCUMULATION_STEPS"
    if isinstance(error, RecursionError):
        return f"something is nested too deeply or contains itself ({first}); check the files named"
    if isinstance(error, OSError) and error.filename is not None and type(error.filename) is str:
        return f"{error.filename}: {error.strerror}; check the path, its permissions and the disk"
    return text


def _text(error: BaseException) -> str:
    # KeyError puts its message in quotes.
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()


def _last_line(error: BaseException) -> tuple[str, str]:
    """Kind and message at the end of another process's traceback."""
    lines = str(error).strip().splitlines()
    kind, _, text = (lines[-1] if lines else "").partition(": ")
    return kind, text
