"""Parsers of the commands, and types of flags, whose errors argparse reports."""

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

_RESUME = (
    "go on from the newest whole checkpoint of the output folder, with --eval-only score it; "
    "without a checkpoint begin at iteration 0, but not where there are damaged ones. Left out: "
    "begin at iteration 0, and set checkpoints in the folder aside, in before_<run>"
)
# Largest count or size in px that a flag takes.
_MOST = 10**9


def whole(least: int, most: int = _MOST) -> Callable[[str], int]:
    """Make the type of a flag that is a whole number.

    Args:
        least: Smallest value.
        most: Largest value.

    Returns:
        The type.
    """

    def read(text: str) -> int:
        if text.strip().lstrip("+-").isdecimal() and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} to {most}")

    return read


def real(least: float, most: float) -> Callable[[str], float]:
    """Make the type of a flag that is a finite number.

    Args:
        least: Smallest value.
        most: Largest value.

    Returns:
        The type.
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # Of no number every comparison is false.
        if least <= value <= most and math.isfinite(value):
            return value
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")

    return read


positive, count, share = whole(1), whole(0), real(0.0, 1.0)


def device(text: str) -> str:
    """Read the flag --device.

    Args:
        text: As torch names it; empty where the tool chooses.

    Returns:
        The device, which is there.
    """
    # Only torch knows what is there; it is asked where the flag is given.
    from clipself_d2.command_line.devices import find_device

    try:
        return text and find_device(text, "--device", is_asked=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def user_path(text: str) -> Path:
    """Read a path of the command line or of a key.

    Args:
        text: The path; ``~`` is the home folder, also where no shell has expanded it.

    Returns:
        The path.
    """
    return Path(text).expanduser()


def data_root() -> Path:
    """Tell where data sets lie.

    Returns:
        DETECTRON2_DATASETS, else ``datasets``.
    """
    return user_path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def add_data_root(parser: argparse.ArgumentParser, flag: str, holds: str) -> None:
    """Add the flag of a command for the folder of data sets.

    Args:
        parser: Of the command.
        flag: Such as --root.
        holds: What the folder is, for the help.
    """
    text = f"{holds}; default DETECTRON2_DATASETS or datasets"
    parser.add_argument(flag, type=user_path, default=data_root(), help=text)


def tool_parser(description: str | None, example: str) -> argparse.ArgumentParser:
    """Parser of any command, with the flag --debug of ``run_tool``.

    Args:
        description: What the command does, its docstring.
        example: A command line that can be pasted.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"Example:\n\n    {example}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.error = partial(_refuse, parser, parser.error)  # type: ignore[method-assign]
    return parser


def train_parser(example: str, description: str | None = None) -> argparse.ArgumentParser:
    """Parser of a command with Detectron2's flags, whose own needs torch.

    Args:
        example: A command line that can be pasted.
        description: What the command does, its docstring.

    Returns:
        The parser.
    """
    parser = tool_parser(description, example)
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="recipe, a file or one of configs/")
    add("--resume", action="store_true", help=_RESUME)
    add("--eval-only", action="store_true", help="score, do not train")
    add("--num-gpus", type=count, default=1, help="processes on this machine, a GPU each")
    add("--num-machines", type=positive, default=1, help="machines of the run")
    add("--machine-rank", type=count, default=0, help="number of this machine, from 0")
    # Detectron2's: every user has a port of their own, and orphans show, since it is taken.
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    add("--dist-url", default=f"tcp://127.0.0.1:{port}", help="where processes find each other")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs; for a .py recipe key=value")
    return parser


def _refuse(
    parser: argparse.ArgumentParser, say: Callable[[str], NoReturn], message: str
) -> NoReturn:
    """Add the flag that was meant to what argparse says of an unknown one."""
    _, unknown, words = message.partition("unrecognized arguments: ")
    known = list(parser._option_string_actions)
    near = difflib.get_close_matches(words.split()[0], known, n=1) if unknown else []
    say(message + "".join(f"; did you mean {flag!r}?" for flag in near))
