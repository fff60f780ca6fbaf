"""Names of CLIP's weights in every published layout, and their translation.

Layouts: ``open_clip`` (OpenAI's files have the same names), ``eva_clip`` (EVA-CLIP and CLIPSelf's
files), ``regionclip`` (RegionCLIP's pre-trained and fine-tuned files), and detectors that hold an
image tower beside necks and heads.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clipself_d2.clip.towers.positions import rotary_table

# Settings that OpenAI's files store as tensors, and tables that open_clip and timm recompute.
_NOT_WEIGHTS = re.compile(r"^(input_resolution|context_length|vocab_size|(.*\.)?attn_mask)$")
# Roots of the text tower: at the top in OpenAI's layout, under "text." in open_clip's newer one.
_TEXT_ROOTS = (
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
)
# What a whole CLIP has beside its image tower.
_BESIDE_TOWER = ("text.", "logit_scale", "logit_bias", *_TEXT_ROOTS)
# Entries that give away an image tower saved without the prefix "visual.".
_BARE_TOWER_KEYS = ("class_embedding", "cls_token", "trunk.cls_token")
_DETECTOR_PARTS = (
    "backbone.",
    "offline_rpn.",
    "proposal_generator.",
    "roi_heads.",
    "sem_seg_head.",
    "pixel_",
)
# Detectors: layout, what stands before "visual.", and the parts that are no weights of a CLIP.
_DETECTORS = (
    ("clipself_d2 detector", "backbone.bottom_up.tower.", _DETECTOR_PARTS),
    ("clipself_d2 detector", "backbone.tower.", _DETECTOR_PARTS),
    (
        "F-ViT detector",
        "backbone.",
        ("backbone.interpolate", "neck.", "rpn_head.", "roi_head.", "mask_head."),
    ),
)
# RegionCLIP's files: the student's image tower, CLIP's text tower, and what is neither.
_REGIONCLIP_MARK = "backbone.attnpool.positional_embedding"
_REGIONCLIP_TO_OPEN_CLIP = (("backbone.", "visual."), ("lang_encoder.", ""))
_REGIONCLIP_REST = (
    "teacher_backbone.",
    "teacher_lang_encoder.",
    "teacher.",
    "offline_backbone.",
    "offline_proposal_generator.",
    "roi_heads.",
)
# Its cosines were divided by 0.01, and its files have no logit scale.
_REGIONCLIP_LOGIT_SCALE = math.log(100.0)
# EVA-CLIP's names, and open_clip's.
_EVA_NAMES = (
    ("visual.", "visual.trunk."),
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
    (".mlp.ffn_ln.", ".mlp.norm."),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
)
# Rotary positions of every published EVA02-CLIP.
_EVA_HEAD_DIM = 64
_ROPE_TEMPERATURE = 1e4
_ROPE_REFERENCE = (16, 16)


@dataclass(frozen=True)
class NamedWeights:
    """A checkpoint in open_clip's naming.

    Attributes:
        tensors: Tensors by open_clip's name.
        layout: "open_clip", "eva_clip" or "regionclip", the first two perhaps after the kind of
            detector they were taken from, such as "F-ViT detector, eva_clip".
        ignored: Names in the file that are no weights of a CLIP and are known as such.
    """

    tensors: dict[str, Tensor]
    layout: str
    ignored: tuple[str, ...]


def to_open_clip(state: Mapping[str, Tensor]) -> NamedWeights:
    """Rename a checkpoint's entries to open_clip's, and take the image tower out of a detector.

    Known are open_clip's, OpenAI's, EVA-CLIP's and RegionCLIP's naming, and detectors of F-ViT and
    of this project; an image tower alone may lack the prefix "visual.". A name that no layout knows
    stays, for the strict loader to refuse.

    Reference: EVA-CLIP's names as in the files released for CLIPSelf, arXiv 2310.01403.
    """
    ignored = [key for key in state if _NOT_WEIGHTS.match(key)]
    state = {key: value for key, value in state.items() if key not in set(ignored)}
    if _REGIONCLIP_MARK in state:
        return _from_regionclip(state, ignored)
    kind = ""
    for detector, prefix, rest in _DETECTORS:
        if any(key.startswith(f"{prefix}visual.") for key in state):
            kind = f"{detector}, "
            tower = f"{prefix}visual."
            beside = [k for k in state if k.startswith(rest) and not k.startswith(tower)]
            ignored += beside
            kept = (key for key in state if key not in set(beside))
            state = {key.removeprefix(prefix): state[key] for key in kept}
            break
    if not any(key.startswith("visual.") for key in state) and any(
        key in state for key in _BARE_TOWER_KEYS
    ):
        state = {f"visual.{key}": value for key, value in state.items()}
    if "visual.cls_token" not in state:
        return NamedWeights(dict(state), f"{kind}open_clip", tuple(ignored))
    # Rotary tables are a function of the grid, stored once for every block.
    ignored += [key for key in state if _is_rotary(key)]
    renamed = {_rename(key, _EVA_NAMES): state[key] for key in state if not _is_rotary(key)}
    return NamedWeights(renamed, f"{kind}eva_clip", tuple(ignored))


def _from_regionclip(state: Mapping[str, Tensor], ignored: list[str]) -> NamedWeights:
    rest = [key for key in state if key.startswith(_REGIONCLIP_REST)]
    renamed = {}
    for key in state.keys() - set(rest):
        name = key
        for theirs, ours in _REGIONCLIP_TO_OPEN_CLIP:
            if key.startswith(theirs):
                name = ours + key.removeprefix(theirs)
        renamed[name] = state[key]
    # Frozen norms have no counter of batches, which open_clip's have.
    for key in list(renamed):
        if key.startswith("visual.") and key.endswith(".running_var"):
            counter = f"{key.removesuffix('running_var')}num_batches_tracked"
            renamed.setdefault(counter, torch.tensor(0))
    if any(key.startswith("lang_encoder.") for key in state):
        renamed.setdefault("logit_scale", torch.tensor(_REGIONCLIP_LOGIT_SCALE))
    return NamedWeights(renamed, "regionclip", (*ignored, *rest))


def to_clipself(state: Mapping[str, Tensor], *, head_dim: int | None = None) -> dict[str, Tensor]:
    """Rename open_clip's entries to those of the published CLIPSelf code.

    For EVA02, EVA-CLIP's names with the rotary tables of the native grid (heads of ``head_dim``
    channels, 64 in published ones); for other towers the names of OpenAI's files, whose text tower
    lies at the root. A ValueError says that CLIPSelf's code has no such tower.

    Reference: the files released for CLIPSelf, arXiv 2310.01403.
    """
    if not any(key.startswith("visual.trunk.") for key in state):
        return _with_text_at_root(state)
    if not any(key.endswith(".mlp.fc1_g.weight") for key in state) or (
        "visual.trunk.cls_token" not in state
    ):
        raise ValueError(
            "the image tower is of timm but no EVA02, which CLIPSelf's code lacks; choose --to "
            "open_clip, d2 or safetensors"
        )
    names = [(ours, theirs) for theirs, ours in _EVA_NAMES]
    renamed = {_rename(key, names): value for key, value in state.items()}
    # CLIPSelf's loader is strict, and its towers hold their rotary tables as buffers.
    return {**renamed, **_rotary_tables(renamed, head_dim)}


def place_text(state: Mapping[str, Tensor], *, nested: bool) -> dict[str, Tensor]:
    """Put the text tower under "text.", or at the root, as a model of open_clip has it.

    Those of another text tower than CLIP's own stay where they are.
    """
    placed = {}
    for key, value in state.items():
        bare = key.removeprefix("text.")
        if bare.startswith(_TEXT_ROOTS):
            key = f"text.{bare}" if nested else bare
        placed[key] = value
    return placed


def is_beside_tower(key: str) -> bool:
    """Tell whether an entry belongs to a whole CLIP but not to its image tower."""
    return key.startswith(_BESIDE_TOWER)


def _is_rotary(key: str) -> bool:
    return key.startswith("visual.") and ".rope." in key


def _rename(key: str, names: Iterable[tuple[str, str]]) -> str:
    if key.startswith("visual."):
        for old, new in names:
            key = key.replace(old, new)
    return key


def _with_text_at_root(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    placed = place_text(state, nested=False)
    foreign = [key for key in placed if key.startswith("text.")]
    if foreign:
        raise ValueError(
            f"CLIPSelf's code has no text tower with {foreign[0]}; choose --to open_clip, d2 or "
            "safetensors"
        )
    return placed


def _rotary_tables(state: Mapping[str, Tensor], head_dim: int | None) -> dict[str, Tensor]:
    """Tables of the native grid under the names of EVA-CLIP: one, and one more in each block."""
    positions = state["visual.pos_embed"]
    width, side = positions.shape[-1], math.isqrt(positions.shape[1] - 1)
    head_dim = _EVA_HEAD_DIM if head_dim is None else head_dim
    if width % head_dim or side * side != positions.shape[1] - 1:
        raise ValueError(
            f"an EVA02 of width {width} with {positions.shape[1] - 1} positions is none of the "
            f"published ones, whose heads have {head_dim} channels; give --model"
        )
    table = rotary_table(
        (side, side),
        head_dim=head_dim,
        temperature=_ROPE_TEMPERATURE,
        reference=_ROPE_REFERENCE,
        device=torch.device("cpu"),
    )
    sin, cos = (half.clone() for half in torch.split(table, head_dim, dim=1))
    blocks = {key.split(".")[2] for key in state if key.startswith("visual.blocks.")}
    owners = ["visual.rope", *(f"visual.blocks.{i}.attn.rope" for i in sorted(blocks, key=int))]
    halves = (("freqs_cos", cos), ("freqs_sin", sin))
    return {f"{owner}.{name}": half for owner in owners for name, half in halves}
