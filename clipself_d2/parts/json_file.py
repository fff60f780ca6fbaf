"""Files of JSON that every reader takes, whole or not there."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from clipself_d2.vocabulary.whole_file import whole_file


def strict(content: object) -> object:
    """Replace numbers that JSON has not, the infinite ones, by None."""
    if isinstance(content, Mapping):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: Path, content: object, *, indent: int | None = None) -> None:
    """Write a file beside its place and rename it; null stands for undefined numbers.

    An indent of None writes a single line.
    """
    text = json.dumps(strict(content), indent=indent, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(text)
