"""Reading CLIP weights in every published layout, strictly."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from clipself_d2.clip.model import ClipModel
    from clipself_d2.clip.resnet_tower import ResNetTower
    from clipself_d2.clip.towers import VisionTower

# Settings that OpenAI's files store as tensors, and tables that open_clip and timm recompute.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
# Roots of the text tower: at the top in OpenAI's layout, under "text." in open_clip's newer one.
_TEXT_ROOTS = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
)
# Entries that give away an image tower saved without the prefix "visual.".
_BARE_TOWER_KEYS = ("class_embedding", "cls_token", "trunk.cls_token")
_EVA_RENAMES = (
    (re.compile(r"^visual\."), "visual.trunk."),
    (re.compile(r"\.attn\.inner_attn_ln\."), ".attn.norm."),
    (re.compile(r"\.attn\.([qv])_bias$"), r".attn.\1_proj.bias"),
    (re.compile(r"\.mlp\.ffn_ln\."), ".mlp.norm."),
    (re.compile(r"\.mlp\.w1\."), ".mlp.fc1_g."),
    (re.compile(r"\.mlp\.w2\."), ".mlp.fc1_x."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
)
_SHOWN_KEYS = 4


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint gave.

    Attributes:
        path: The file.
        layout: "open_clip" or "eva_clip", the naming of its image tower.
        num_loaded: Number of tensors loaded.
        ignored: Names in the file that belong to no part of the target, such as the text tower
            where only the image tower is loaded.
    """

    path: str
    layout: str
    num_loaded: int
    ignored: tuple[str, ...]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint.

    Args:
        path: A safetensors file or one of ``torch.save``; in the latter the weights may lie under
            "model" (Detectron2) or "state_dict" (open_clip's and CLIPSelf's training).

    Returns:
        Tensors on the CPU by name, without a leading "module.".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds anything but tensors.
    """
    path = Path(path)
    content: object
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; check MODEL.CLIP.WEIGHTS or PRETRAINED")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path, device="cpu")
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors or as weights saved by torch.save; it may be "
            f"cut short, a TorchScript archive, or hold code: {_first_line(error)}"
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds {type(content).__name__}, expected named tensors")
    odd = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f"{path} holds other things than tensors: {_some(odd)}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def to_open_clip_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Rename a checkpoint's entries to open_clip's.

    Args:
        state: Tensors in open_clip's, OpenAI's or EVA-CLIP's naming; an image tower alone may lack
            the prefix "visual.".

    Returns:
        The renamed tensors, and the layout: "open_clip" or "eva_clip".

    Reference: EVA-CLIP's names as in the files released for CLIPSelf, arXiv 2310.01403.
    """
    state = {key: value for key, value in state.items() if key not in _NOT_WEIGHTS}
    if not any(key.startswith("visual.") for key in state) and any(
        key in state for key in _BARE_TOWER_KEYS
    ):
        state = {f"visual.{key}": value for key, value in state.items()}
    if "visual.cls_token" not in state:
        return state, "open_clip"
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        # Rotary tables are a function of the grid, stored once for every block.
        if ".rope." in key:
            continue
        renamed[_rename_eva(key) if key.startswith("visual.") else key] = value
    return renamed, "eva_clip"


def load_tower_weights(tower: "VisionTower | ResNetTower", path: str | Path) -> LoadReport:
    """Load an image tower; text weights in the file are passed over.

    Args:
        tower: The tower to fill, in place.
        path: A file in any layout that ``read_checkpoint`` knows, whole CLIP or tower alone.

    Returns:
        What was loaded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If names or shapes are not exactly the tower's.
    """
    state, layout = to_open_clip_names(read_checkpoint(path))
    wanted = {key: value for key, value in state.items() if key.startswith("visual.")}
    _fill([tower], wanted, path=path, owner=f"the image tower of {tower.name}", first=list(state))
    ignored = tuple(sorted(set(state) - set(wanted)))
    return LoadReport(str(path), layout, len(wanted), ignored)


def load_clip_weights(model: "ClipModel", path: str | Path) -> LoadReport:
    """Load a whole CLIP.

    Args:
        model: The model to fill, in place.
        path: A file in any layout that ``read_checkpoint`` knows.

    Returns:
        What was loaded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If names or shapes are not exactly the model's, or the file holds an image tower
            alone.
    """
    state, layout = to_open_clip_names(read_checkpoint(path))
    if all(key.startswith("visual.") for key in state):
        raise ValueError(
            f"{path} holds an image tower without text tower; give it as MODEL.CLIP.WEIGHTS, "
            f"and the whole {model.name} as MODEL.CLIP.PRETRAINED"
        )
    text = model.text.clip
    state = _place_text(state, nested=any(key.startswith("text.") for key in text.state_dict()))
    parts = [model.tower, text]
    _fill(parts, state, path=path, owner=f"the CLIP {model.name}", first=list(state))
    return LoadReport(str(path), layout, len(state), ())


def _rename_eva(key: str) -> str:
    for pattern, replacement in _EVA_RENAMES:
        key = pattern.sub(replacement, key)
    return key


def _place_text(state: Mapping[str, Tensor], *, nested: bool) -> dict[str, Tensor]:
    placed = {}
    for key, value in state.items():
        bare = key.removeprefix("text.")
        if bare.startswith(_TEXT_ROOTS):
            key = f"text.{bare}" if nested else bare
        placed[key] = value
    return placed


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
    missing = sorted(set(targets) - set(state))
    unexpected = sorted(set(state) - set(targets))
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(target.shape)}"
        for key, target in targets.items()
        if key in state
        and state[key].shape != target.shape
        and (target.numel() > 1 or state[key].numel() > 1)
    ]
    if missing or unexpected or wrong:
        lines = [f"{path} does not fit {owner}; check MODEL.CLIP.NAME against the file"]
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        lines += [f"  {len(keys)} {title}: {_some(keys)}" for title, keys in found if keys]
        lines.append(f"  the file begins with: {_some(first)}")
        raise ValueError("\n".join(lines))
    for module in modules:
        own = module.state_dict()
        # CLIP's logit scale is a scalar in some files and a vector of one in others.
        module.load_state_dict({key: state[key].reshape(own[key].shape) for key in own})


def _some(keys: list[str]) -> str:
    more = "" if len(keys) <= _SHOWN_KEYS else f" and {len(keys) - _SHOWN_KEYS} more"
    return ", ".join(keys[:_SHOWN_KEYS]) + more


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
