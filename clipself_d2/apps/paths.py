"""Paths that users type."""

import argparse
import os
from pathlib import Path


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
