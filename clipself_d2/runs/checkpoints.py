"""Checkpoints of a folder: which is whole, which is newest, and what has changed since."""

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from clipself_d2.parts.words import shortened
from clipself_d2.runs.folder import CHECKPOINTS, LAST_CHECKPOINT, read_run

logger = logging.getLogger(__name__)

# Keys that may change on resume without a word.
_PLACES = ("OUTPUT_DIR", "train.output_dir")
# What Python prints of a function in a LazyConfig, which is another in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Found(NamedTuple):
    """A whole checkpoint, and the run that goes on with it; "" where nothing has an id."""

    path: Path
    run: str


def newest_of_run(folder: str | Path) -> Found | None:
    """Choose the checkpoint from which the run of a folder goes on, if there is any.

    A ValueError says that no checkpoint of the folder is whole, or the newest is of another run.
    """
    found, passed = newest_checkpoint(folder)
    if found is None:
        if passed:
            raise ValueError(
                f"--resume finds no whole checkpoint in {folder}: {shortened(passed)}; to begin at "
                "iteration 0 leave out --resume, which sets these files aside"
            )
        return None
    if passed:
        logger.warning("--resume takes %s and passes over %s", found.path, shortened(passed))
    own = read_run(folder)
    if found.run and own and found.run != own:
        raise ValueError(
            f"{found.path} is of run {found.run}, but {folder} is the folder of run {own}; move "
            "the file away, leave out --resume, or begin with its weights (MODEL.WEIGHTS, lazy: "
            "train.init_checkpoint) in another folder"
        )
    return Found(found.path, own or found.run)


def newest_checkpoint(folder: str | Path) -> tuple[Found | None, list[str]]:
    """Find the newest checkpoint of a folder that can be read to its last byte.

    The result of a training that was done, ``model_final.pth``, counts where ``last_checkpoint``
    names it or nothing else is whole: a training that goes on has numbered ones after it. Beside
    it, each file passed over with what is wrong with it.
    """
    folder = Path(folder)
    paths, passed, named = set(folder.glob(CHECKPOINTS)), [], ""
    with suppress(OSError):
        named = (folder / LAST_CHECKPOINT).read_text(encoding="utf-8", errors="replace").strip()
        if not named:
            passed.append(f"{LAST_CHECKPOINT} (empty)")
        elif (folder / named).is_file():
            paths.add(folder / named)
        else:
            passed.append(f"{named} (named by {LAST_CHECKPOINT}, but not there)")
    found = []
    for path in sorted(paths):
        try:
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            run = str(content.get("run", {}).get("id", ""))
            # model_final has no number: it comes behind those that have, unless it is named.
            is_next = path.name == named or path.stem[-1].isdigit()
            found.append((is_next, int(content["iteration"]), path, run))
        except Exception as error:  # damaged files raise nearly anything
            reason = "no state of a training" if isinstance(error, KeyError) else "cut or damaged"
            passed.append(f"{path.name} ({reason})")
    for *_, path, run in sorted(found, reverse=True):
        problem = _problem(path)
        if not problem:
            return Found(path, run), passed
        passed.append(f"{path.name} ({problem})")
    return None, passed


def _problem(path: Path) -> str:
    """What is wrong with a checkpoint; every byte is read, and compared with its checksum."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return "damaged"
    except (OSError, zipfile.BadZipFile):
        return "damaged"
    weights = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)["model"]
    if any(value.isnan().any() for value in weights.values() if value.is_floating_point()):
        return "weights that are not numbers"
    return ""


def check_finite(model: nn.Module, consequence: str) -> None:
    """Raise a ValueError where parameters are infinite, or parameters or buffers no numbers.

    Constant buffers may hold infinities, such as masks of attention.
    """
    wrong = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    wrong += [
        name
        for name, value in model.named_buffers()
        if value.is_floating_point() and value.isnan().any()
    ]
    if wrong:
        raise ValueError(
            f"weights are not finite ({len(wrong)} tensors, {shortened(wrong, 1)}): {consequence}"
        )


def warn_of_changes(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """List the keys of a config, as of ``flat_keys``, that the run so far had otherwise."""
    changes = [
        f"{key} {before[key]} -> {value}"
        for key, value in after.items()
        if key not in _PLACES and before.get(key, value) != value
    ]
    if changes:
        logger.warning(
            "Since the checkpoint was written these keys have changed: %s", shortened(changes, 30)
        )


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List a nested config, of yacs or omegaconf, as dotted keys and values."""
    for key in config:
        value = config[key]
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat_keys(config: Any) -> dict[str, str]:
    """Write the ``leaves`` of a config as texts."""
    return {key: _ADDRESS.sub("", str(value)) for key, value in leaves(config)}
