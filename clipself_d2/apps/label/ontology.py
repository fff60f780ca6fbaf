"""Which prompts stand for which class of a data set to be labelled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipself_d2.parts.annotation_files import read_json


@dataclass(frozen=True)
class LabelClass:
    """A class of the labels.

    Attributes:
        name: What annotations call it.
        prompts: Words given to the detector; their embeddings are averaged.
        threshold: Least score of its labels, in [0, 1].
    """

    name: str
    prompts: tuple[str, ...]
    threshold: float


def read_ontology(path: Path, threshold: float) -> tuple[LabelClass, ...]:
    """Read a file such as ``{"truck": ["lorry", "truck"], "dog": {"prompts": "dog", ...}}``.

    By class it has a prompt, a list of prompts, or an object with ``prompts`` and ``threshold``,
    which is that of classes that name none.
    """
    content = read_json(path, remedy="correct the file of --ontology")
    if not isinstance(content, dict) or not content:
        raise ValueError(f'{path} names no class; write {{"class": "prompt", ...}}')
    classes = []
    for name, entry in content.items():
        options = entry if isinstance(entry, dict) else {"prompts": entry}
        given = options.get("prompts", name)
        prompts: Any = [given] if isinstance(given, str) else given
        least = options.get("threshold", threshold)
        right = isinstance(prompts, list) and prompts and all(isinstance(p, str) for p in prompts)
        if not right or not isinstance(least, int | float) or not 0 <= least <= 1:
            raise ValueError(
                f"class {name!r} of {path} is {entry!r}; write a prompt, a list of prompts, or "
                '{"prompts": [...], "threshold": 0.3} with a threshold from 0 to 1'
            )
        classes.append(LabelClass(name, tuple(prompts), float(least)))
    return tuple(classes)
