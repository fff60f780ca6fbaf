"""Checkpoints of RegionCLIP under the names of our detector.

Published layouts: pre-trained (``backbone``, ``teacher_backbone``, ``lang_encoder`` and the offline
RPN), fine-tuned (``backbone``, the offline RPN and the heads), and the CLIP baseline (``backbone``,
``lang_encoder`` and CLIP's loose scalars).
"""

from collections.abc import Mapping, MutableMapping

from torch import Tensor

from clipself_d2.clip.weights.loading import check_fit

BACKBONE, TOWER = "backbone.", "tower.visual."
OFFLINE = "offline_rpn."
_OFFLINE_PARTS = {
    "offline_backbone.": f"{OFFLINE}backbone.",
    "offline_proposal_generator.": f"{OFFLINE}proposal_generator.",
}
_HEADS = "roi_heads."
# The text embeddings of the classes it was trained and tested with: the vocabulary of the config
# takes their place.
_VOCABULARIES = tuple(
    f"{_HEADS}box_predictor.{name}.weight"
    for name in ("cls_score", "cls_bg_score", "test_cls_score")
)
# What only the pre-training uses, or a whole CLIP has beside its image tower.
_BESIDE = (
    "teacher_backbone.",
    "teacher_lang_encoder.",
    "teacher.",
    "lang_encoder.",
    "offline_proposal_generator.anchor_generator.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
)
_MARK = f"{BACKBONE}attnpool.positional_embedding"
_COUNTER = ".num_batches_tracked"


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell a checkpoint of the published code by the names of its CLIP ResNet from our own."""
    return _MARK in state


def rename_published(
    state: MutableMapping[str, Tensor], own: Mapping[str, Tensor], *, keep_offline: bool
) -> None:
    """Give a published checkpoint our names, in place, and refuse one that does not fit.

    Parts that the file does not have, such as heads or the offline RPN, come from ``own``, so that
    Detectron2's frozen norms, which forget statistics that a checkpoint lacks, keep theirs.

    Args:
        state: Tensors by published name; afterwards every name of ``own``.
        own: The detector's present tensors by name.
        keep_offline: Whether the detector's offline RPN stays as it is, because a file of its own
            filled it.

    Raises:
        ValueError: If a name is unknown, a part is incomplete, or a shape differs.

    Reference: the files released with RegionCLIP, arXiv 2112.09106.
    """
    ours = next((key for key in own if key.startswith(BACKBONE) and TOWER in key), None)
    if ours is None:
        raise ValueError(
            "MODEL.WEIGHTS is a checkpoint of RegionCLIP with a CLIP ResNet, but the detector has "
            "another backbone; set MODEL.BACKBONE.NAME to build_clip_resnet_backbone and "
            "MODEL.CLIP.NAME to RN50-quickgelu or RN50x4-quickgelu"
        )
    tower = ours[: ours.index(TOWER) + len(TOWER)]
    has_offline = any(key.startswith(OFFLINE) for key in own) and not keep_offline
    renamed, foreign = {}, []
    for key, value in state.items():
        name = _rename(key, tower, has_offline=has_offline)
        if name is None:
            foreign.append(key)
        elif name:
            renamed[name] = value
    # A part that the file has must be there as a whole; norms' counters are of no use.
    parts = {_part(key) for key in renamed}
    missing = [
        key
        for key in own
        if _part(key) in parts and key not in renamed and not key.endswith(_COUNTER)
    ]
    complaint = (
        "MODEL.WEIGHTS, a checkpoint of RegionCLIP, does not fit the detector; check "
        "MODEL.CLIP.NAME, MODEL.MASK_ON and MODEL.FROZEN_RPN.CONFIG"
    )
    check_fit(renamed, own, complaint, missing=missing, foreign=foreign)
    state.clear()
    state.update({**own, **renamed})


def _rename(key: str, tower: str, *, has_offline: bool) -> str | None:
    """Our name; "" for what is known and not needed, None for what is unknown."""
    if key.startswith(_BESIDE) or key in _VOCABULARIES:
        return ""
    if key.startswith(BACKBONE):
        return tower + key.removeprefix(BACKBONE)
    for theirs, ours in _OFFLINE_PARTS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs) if has_offline else ""
    return key if key.startswith(_HEADS) else None


def _part(key: str) -> str:
    """The part that a file has as a whole or not at all."""
    depth = 2 if key.startswith((_HEADS, OFFLINE)) else 1
    return ".".join(key.split(".")[:depth])
