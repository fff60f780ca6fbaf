"""Checkpoints of the published CAT-Seg (its second version) under the names of our model.

A file holds the two transposed convolutions ``upsample1`` and ``upsample2``, and under
``sem_seg_head.predictor`` the aggregator (``transformer``) and a whole CLIP (``clip_model``), whose
attention has its query, key and value apart.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from clipself_d2.clip.weights.loading import check_fit

_PREDICTOR = "sem_seg_head.predictor."
_CLIP = f"{_PREDICTOR}clip_model."
_AGGREGATOR = f"{_PREDICTOR}transformer."
_THIRDS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
# Published names inside the aggregator, as patterns, and ours.
_INSIDE = (
    (r"^layers\.(\d+)\.swin_block\.guidance_norm\.", r"spatial.\1.guide_norm."),
    (r"^layers\.(\d+)\.swin_block\.block_1\.", r"spatial.\1.blocks.0."),
    (r"^layers\.(\d+)\.swin_block\.block_2\.", r"spatial.\1.blocks.1."),
    (r"^layers\.(\d+)\.attention\.padding_tokens$", r"classes.\1.padding_cost"),
    (r"^layers\.(\d+)\.attention\.padding_guidance$", r"classes.\1.padding_guide"),
    (r"^layers\.(\d+)\.attention\.(?:attention\.)?", r"classes.\1."),
    (r"\.attn\.proj\.", ".project."),
    (r"\.attn\.", "."),
    (r"\.MLP\.", ".mlp."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.2."),
    (r"\.q\.", ".query."),
    (r"\.k\.", ".key."),
    (r"\.v\.", ".value."),
    (r"^conv1\.", "embed."),
    (r"^guidance_projection\.", "appearance."),
    (r"^text_guidance_projection\.", "text."),
    (r"^decoder_guidance_projection\.", "guides."),
    (r"^decoder1\.", "decoders.0."),
    (r"^decoder2\.", "decoders.1."),
    (r"\.up\.", ".enlarge."),
    (r"\.conv\.double_conv\.", ".fuse."),
)
# A constant of the grid, and what the text tower's causal mask is called in some files.
_CONSTANTS = ("attn_mask",)


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell a checkpoint of the published code by its predictor from our own."""
    return any(key.startswith(_PREDICTOR) for key in state)


def rename_aggregator(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a published aggregator the names of ours, without the constants of the grid."""
    renamed = {}
    for key, value in state.items():
        if key.endswith(_CONSTANTS):
            continue
        for pattern, replacement in _INSIDE:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def join_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join query, key and value weights that a CLIP has apart into open_clip's one matrix."""
    joined = {key: value for key, value in state.items() if not key.endswith(_THIRDS)}
    stems = [key.removesuffix(_THIRDS[0]) for key in state if key.endswith(_THIRDS[0])]
    for stem in stems:
        missing = [third for third in _THIRDS if f"{stem}{third}" not in state]
        if missing:
            raise ValueError(f"MODEL.WEIGHTS has no {stem}{missing[0]}; it may be cut short")
        parts = [state[f"{stem}{third}"] for third in _THIRDS]
        joined[f"{stem}in_proj_weight"] = torch.cat(parts)
    return joined


def rename_published(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a published checkpoint the names of ``own``, and refuse one that does not fit.

    Reference: the files released with CAT-Seg, arXiv 2303.11797.
    """
    clip, aggregator, renamed, foreign = {}, {}, {}, []
    for key, value in state.items():
        if key.startswith(_CLIP):
            clip[key.removeprefix(_CLIP)] = value
        elif key.startswith(_AGGREGATOR):
            aggregator[key.removeprefix(_AGGREGATOR)] = value
        elif key.startswith(("upsample1.", "upsample2.")):
            renamed[key.replace("upsample1", "enlarge.0").replace("upsample2", "enlarge.1")] = value
        elif key not in ("clip_pixel_mean", "clip_pixel_std", "pixel_mean", "pixel_std"):
            foreign.append(key)
    renamed |= {f"aggregator.{key}": value for key, value in rename_aggregator(aggregator).items()}
    for key, value in join_projections(clip).items():
        if key.startswith("visual."):
            renamed[f"tower.{key}"] = value
        elif not key.endswith(_CONSTANTS):
            renamed[f"words.text.clip.{key}"] = value
    renamed = {key: _shaped_as(own.get(key), value) for key, value in renamed.items()}
    complaint = (
        "MODEL.WEIGHTS, a checkpoint of CAT-Seg, does not fit the model; check MODEL.CLIP.NAME and "
        "that MODEL.CAT_SEG has the published sizes"
    )
    check_fit(renamed, own, complaint, foreign=foreign)
    return renamed


def _shaped_as(own: Tensor | None, value: Tensor) -> Tensor:
    return value if own is None or own.numel() != value.numel() else value.reshape(own.shape)
