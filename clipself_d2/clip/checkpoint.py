"""Reading CLIP weights in any of the usual layouts, strictly."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]

_WRAPPERS = ("model", "state_dict")
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
_VISUAL_ROOTS = ("class_embedding", "cls_token", "conv1.", "patch_embed.", "ln_pre.")
# EVA-CLIP's names and those of timm's EVA, in the order of replacement.
_EVA_NAMES = (
    ("attn.inner_attn_ln", "attn.norm"),
    ("mlp.ffn_ln", "mlp.norm"),
    ("mlp.w1", "mlp.fc1_g"),
    ("mlp.w2", "mlp.fc1_x"),
    ("mlp.w3", "mlp.fc2"),
    ("attn.q_bias", "attn.q_proj.bias"),
    ("attn.v_bias", "attn.v_proj.bias"),
)


@dataclass(frozen=True)
class LoadReport:
    """What was loaded.

    Attributes:
        path: The file.
        num_tensors: Tensors loaded.
        layout: "open_clip" or "eva_clip".
        ignored: Number of tensors of the file that belong to other parts, such as the text tower.
    """

    path: str
    num_tensors: int
    layout: str
    ignored: int


def read_checkpoint(path: str | Path) -> StateDict:
    """Read the tensors of a file without running code from it.

    Args:
        path: A safetensors file, or one of torch.save with plain tensors, possibly inside
            ``{"model": ...}`` or ``{"state_dict": ...}``.

    Returns:
        Tensors by name, without a leading ``module.``.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged, needs unpickling of code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            content: object = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        OSError,
        BadZipFile,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"weights file {path} is damaged or no plain file of tensors "
            f"({reason[0][:160] if reason else type(error).__name__}); save it again as "
            "safetensors or by torch.save of a state dict"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"weights file {path} holds a {type(content).__name__}, not tensors")
    state = {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, Tensor) and name not in _NOT_WEIGHTS
    }
    if not state:
        raise ValueError(f"weights file {path} holds no tensors by name")
    return state


def to_open_clip_names(state: StateDict) -> tuple[StateDict, str]:
    """Rename the tensors of any layout as open_clip names them.

    Args:
        state: Tensors by name.

    Returns:
        Tensors by open_clip's names, and the layout found.
    """
    if any(name.startswith(_VISUAL_ROOTS) for name in state):
        state = {f"visual.{name}": value for name, value in state.items()}
    if not any(name.startswith("visual.blocks.") for name in state):
        return state, "open_clip"
    renamed: StateDict = {}
    for name, value in state.items():
        if ".rope." in name:
            continue
        if name.startswith("visual."):
            name = name.replace("visual.", "visual.trunk.", 1)
            for theirs, ours in _EVA_NAMES:
                name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed, "eva_clip"


def load_tower_weights(tower: nn.Module, path: str | Path) -> LoadReport:
    """Load an image tower from a file; every parameter must be there.

    Args:
        tower: A ``VisionTower``.
        path: File with the tower alone or with a whole CLIP.

    Returns:
        What was loaded.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is damaged or of another tower.
    """
    state, layout = to_open_clip_names(read_checkpoint(path))
    visual = {name: value for name, value in state.items() if name.startswith("visual.")}
    _load_strictly(tower, visual, path, str(getattr(tower, "name", type(tower).__name__)))
    return LoadReport(str(path), len(visual), layout, len(state) - len(visual))


def load_clip_weights(model: nn.Module, name: str, path: str | Path) -> LoadReport:
    """Load a whole open_clip model from a file; every parameter must be there.

    Args:
        model: Model as open_clip builds it.
        name: Its name, for messages.
        path: File with image and text tower.

    Returns:
        What was loaded.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is damaged or of another model.
    """
    state, layout = to_open_clip_names(read_checkpoint(path))
    if not any(not key.startswith("visual.") for key in state):
        raise ValueError(
            f"weights file {path} has an image tower alone, but {name} needs its text tower too; "
            "give the whole CLIP as MODEL.CLIP.PRETRAINED and this file as MODEL.CLIP.WEIGHTS"
        )
    _load_strictly(model, state, path, name)
    return LoadReport(str(path), len(state), layout, 0)


def _load_strictly(module: nn.Module, state: StateDict, path: str | Path, name: str) -> None:
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    wrong = [
        f"{key} is {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if missing or unexpected or wrong:
        parts = [
            f"{len(found)} {label} such as {found[0]}"
            for label, found in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", wrong),
            )
            if found
        ]
        raise ValueError(
            f"weights file {path} is not of {name}: {'; '.join(parts)}; check MODEL.CLIP.NAME "
            "against the file"
        )
    module.load_state_dict({key: value.float() for key, value in state.items()}, strict=True)
