"""The form in which weights were trained, kept beside them in a file of ``torch.save``."""

from collections.abc import Mapping
from pathlib import Path

import torch

# Fields by name, such as the form of the last block; of a whole model, by the name of the tower.
Form = dict[str, object]
FORM_KEY = "dense_form"
# Shares of a value within which numbers of two forms, such as pixel means, count as equal.
_TOLERANCE = 0.25


def read_form(path: str | Path) -> Form | None:
    """Read the form of the first image tower in a file; None where the file does not say."""
    try:
        # The tensors stay on the disk.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001  (whoever reads the weights says what is wrong with the file)
        return None
    stored = content.get(FORM_KEY) if isinstance(content, Mapping) else None
    return dict(next(iter(stored.values()))) if stored else None


def differences(stored: Form, wanted: Form) -> list[str]:
    """List the fields, in the order of ``wanted``, in which a stored form differs."""
    return [key for key in wanted if key in stored and not _equal(stored[key], wanted[key])]


def _equal(one: object, other: object) -> bool:
    pair = (one, other)
    if not all(isinstance(v, list) and v and isinstance(v[0], float) for v in pair):
        return one == other
    numbers = zip(one, other, strict=False)  # type: ignore[call-overload]
    return len(one) == len(other) and all(  # type: ignore[arg-type]
        abs(a - b) <= _TOLERANCE * abs(a) for a, b in numbers
    )
