"""Files of CLIP weights translated from one published layout to another."""

import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipself_d2.clip import load_clip
from clipself_d2.clip.towers.eva import EvaTower
from clipself_d2.clip.weights.form import FORM_KEY, Form, read_form
from clipself_d2.clip.weights.layouts import is_beside_tower, place_text, to_clipself, to_open_clip
from clipself_d2.clip.weights.loading import load_clip_weights, load_tower_weights, read_checkpoint

logger = logging.getLogger(__name__)

LAYOUTS = ("open_clip", "clipself", "d2", "safetensors")
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        source: File read.
        source_layout: Layout found in it, as of ``NamedWeights``.
        num_read: Tensors in it.
        output: File written.
        layout: Layout written, one of ``LAYOUTS``.
        num_written: Tensors written.
        left_out: Names in the source that were not taken over.
        added: Names written that were computed, such as CLIPSelf's rotary tables.
    """

    source: Path
    source_layout: str
    num_read: int
    output: Path
    layout: str
    num_written: int
    left_out: tuple[str, ...]
    added: tuple[str, ...]


def convert_checkpoint(
    source: str | Path, output: str | Path, *, to: str, model: str = "", force: bool = False
) -> ConversionReport:
    """Write the CLIP weights of a file in another layout; values and precision stay.

    Args:
        source: File in any layout that ``read_checkpoint`` knows.
        output: File to write; it appears whole or not at all.
        to: ``open_clip`` (plain tensors by open_clip's name), ``clipself`` ({"state_dict": ...} by
            the names of the published CLIPSelf code), ``d2`` ({"model": ...} by open_clip's name)
            or ``safetensors`` (by open_clip's name).
        model: Model name as open_clip knows it; the source must fit it exactly, and the text tower
            is put where that model has it. "" checks the names by their form alone.
        force: Whether ``output`` may exist.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If there is no source.
        ValueError: If the source cannot be read, is not of the model or has no counterpart in the
            layout; if the output exists, is the source, or has the suffix of another kind.
    """
    source, output = Path(source), Path(output)
    _check_output(source, output, to, force)
    stored = read_checkpoint(source)
    named = to_open_clip(stored)
    _check_names(named.tensors, source)
    state, head_dim = _fit_model(named.tensors, source, model)
    written = to_clipself(state, head_dim=head_dim) if to == "clipself" else state
    _write(written, output, to, read_form(source))
    return ConversionReport(
        source=source,
        source_layout=named.layout,
        num_read=len(stored),
        output=output,
        layout=to,
        num_written=len(written),
        left_out=named.ignored,
        added=tuple(key for key in written if ".rope." in key),
    )


def _check_output(source: Path, output: Path, to: str, force: bool) -> None:
    if (output.suffix == _SAFETENSORS) != (to == "safetensors"):
        raise ValueError(
            f"--to {to} and the name {output.name} disagree: safetensors files end with "
            f"{_SAFETENSORS}, the others with .pt or .pth"
        )
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file in it")
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"{output} is the source itself; give another name")
    if output.exists() and not force:
        raise ValueError(f"{output} exists; give --force to overwrite it")


def _check_names(state: dict[str, Tensor], source: Path) -> None:
    """Refuse what is neither an image tower nor beside one; what fits is for ``--model``."""
    foreign = [k for k in state if not k.startswith("visual.") and not is_beside_tower(k)]
    if foreign or not any(key.startswith("visual.") for key in state):
        shown = ", ".join(foreign[:4]) or ", ".join(list(state)[:4])
        raise ValueError(
            f"{source} has no CLIP image tower in a known layout; it holds {len(state)} tensors, "
            f"such as {shown}"
        )


def _fit_model(
    state: dict[str, Tensor], source: Path, model: str
) -> tuple[dict[str, Tensor], int | None]:
    """Hold the tensors against a model; give them in its naming, and an EVA02's head width."""
    if not model:
        return state, None
    clip = load_clip(model)
    if any(is_beside_tower(key) for key in state):
        load_clip_weights(clip, source)
        nested = any(key.startswith("text.") for key in clip.text.clip.state_dict())
        state = place_text(state, nested=nested)
    else:
        load_tower_weights(clip.tower, source)
    if not isinstance(clip.tower, EvaTower):
        return state, None
    # Sines and cosines of one head side by side.
    table = clip.tower.rotary(clip.tower.native, torch.device("cpu"))
    return state, None if table is None else table.shape[1] // 2


def _write(state: dict[str, Tensor], output: Path, to: str, form: Form | None) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.{uuid.uuid4().hex}.partial")
    try:
        if to == "safetensors":
            # Tensors that share memory cannot be stored.
            save_file({k: v.contiguous().clone() for k, v in state.items()}, partial)
        else:
            wrapper = {"clipself": "state_dict", "d2": "model"}.get(to)
            # Plain tensors have no place for the form.
            beside = {FORM_KEY: {"": form}} if form else {}
            torch.save(state if wrapper is None else {wrapper: state, **beside}, partial)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
