"""Files of JSON that every reader takes, whole or not there."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

PARTIAL = ".partial"


def strict(content: object) -> object:
    """Replace what JSON has no number for.

    Args:
        content: Mappings, lists and tuples of anything that ``json`` writes.

    Returns:
        The same with None for numbers that are not finite.
    """
    if isinstance(content, Mapping):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: object, *, indent: int | None = None) -> None:
    """Write a file beside its place and rename it; null stands for undefined numbers.

    Args:
        path: File to write; its folder is made.
        content: As of ``strict``.
        indent: Blanks of a level; None writes a single line.
    """
    text = json.dumps(strict(content), indent=indent, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
