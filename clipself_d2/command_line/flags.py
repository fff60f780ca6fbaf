"""Types of command line flags, whose errors argparse reports."""

import argparse
import math
from collections.abc import Callable

from clipself_d2.command_line.devices import find_device

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
    try:
        return text and find_device(text, "--device", is_asked=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
