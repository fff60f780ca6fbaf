"""Reading CLIP weights in every published layout, strictly."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from clipself_d2.clip.weights.form import read_form
from clipself_d2.clip.weights.layouts import NamedWeights, is_beside_tower, place_text, to_open_clip
from clipself_d2.clip.weights.reading import read_weights_file

if TYPE_CHECKING:
    from clipself_d2.clip.model import ClipModel
    from clipself_d2.clip.towers.contract import VisionTower

_SHOWN_KEYS = 4


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint without running code that it may hold.

    Weights may lie under "model" (Detectron2) or "state_dict" (open_clip's, CLIPSelf's and
    mmdetection's training); a leading "module." is taken off their names. A FileNotFoundError or
    ValueError says that the file is missing or damaged, could run code, or holds anything but
    tensors.
    """
    content = read_weights_file(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds {type(content).__name__}, expected named tensors")
    tensors, odd = {}, []
    for key, value in content.items():
        name = str(key).removeprefix("module.")
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            tensors[name] = torch.from_numpy(value)
        elif isinstance(value, Tensor):
            tensors[name] = value
        else:
            odd.append(name)
    if odd:
        raise ValueError(f"{path} holds other things than tensors: {_some(odd)}")
    return tensors


def load_tower_weights(tower: "VisionTower", path: str | Path) -> NamedWeights:
    """Fill an image tower from a file of any known layout; text weights are passed over.

    A FileNotFoundError or ValueError says that there is no file, or that names or shapes are not
    exactly the tower's.
    """
    named = to_open_clip(read_checkpoint(path))
    beside = [key for key in named.tensors if is_beside_tower(key)]
    wanted = {key: value for key, value in named.tensors.items() if key not in set(beside)}
    owner = f"the image tower of {tower.name}"
    attach_gate(tower, wanted)
    _fill([tower], wanted, path=path, owner=owner, first=list(named.tensors))
    ignored = tuple(sorted([*named.ignored, *beside]))
    tower.trained_form = read_form(path)
    return replace(named, tensors=wanted, ignored=ignored)


def load_clip_weights(model: "ClipModel", path: str | Path) -> NamedWeights:
    """Fill a whole CLIP from a file of any known layout.

    Errors are those of ``load_tower_weights``; an image tower alone is one too.
    """
    named = to_open_clip(read_checkpoint(path))
    state = named.tensors
    if all(key.startswith("visual.") for key in state):
        raise ValueError(
            f"{path} holds no text tower, expected the whole {model.name}; give it as the weights "
            "of an image tower"
        )
    text = model.text.clip
    state = place_text(state, nested=any(key.startswith("text.") for key in text.state_dict()))
    parts = [model.tower, text]
    attach_gate(model.tower, state)
    _fill(parts, state, path=path, owner=f"the CLIP {model.name}", first=list(state))
    model.tower.trained_form = read_form(path)
    return replace(named, tensors=state, ignored=tuple(sorted(named.ignored)))


def attach_gate(tower: "VisionTower", state: Mapping[str, Tensor]) -> None:
    """Give a tower the gate of a dense form, where weights by open_clip's names have one."""
    if "visual.dense_gate.weight" in state and hasattr(tower, "attach_gate"):
        tower.attach_gate()  # type: ignore[operator]


def _fill(
    modules: list[nn.Module],
    state: dict[str, Tensor],
    *,
    path: str | Path,
    owner: str,
    first: list[str],
) -> None:
    """Load tensors into modules that share one name space, or raise before anything is changed."""
    targets = {key: value for module in modules for key, value in module.state_dict().items()}
    complaint = f"{path} does not fit {owner}; check the model's name against the file"
    check_fit(state, targets, complaint, hint=f"  the file begins with: {_some(first)}")
    for module in modules:
        own = module.state_dict()
        # CLIP's logit scale is a scalar in some files and a vector of one in others.
        module.load_state_dict({key: state[key].reshape(own[key].shape) for key in own})


def check_fit(
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    complaint: str,
    *,
    missing: list[str] | None = None,
    foreign: Sequence[str] = (),
    hint: str = "",
) -> None:
    """Raise a ValueError where weights have not exactly the names and shapes of the own ones.

    ``missing`` of None are all names that are not given, and ``foreign`` names are unknown too.
    """
    wrong = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(target.shape)}"
        for key, target in own.items()
        if key in given
        and given[key].shape != target.shape
        # One number is one number, as a scalar or as a vector.
        and (target.numel() > 1 or given[key].numel() > 1)
    ]
    found = {
        "missing": sorted(own.keys() - given.keys()) if missing is None else missing,
        "unknown": [*foreign, *sorted(given.keys() - own.keys())],
        "of another shape": wrong,
    }
    lines = [f"  {len(keys)} {title}: {_some(keys)}" for title, keys in found.items() if keys]
    if lines:
        raise ValueError("\n".join([complaint, *lines, *([hint] if hint else [])]))


def _some(keys: list[str]) -> str:
    more = "" if len(keys) <= _SHOWN_KEYS else f" and {len(keys) - _SHOWN_KEYS} more"
    return ", ".join(keys[:_SHOWN_KEYS]) + more
