"""Combinations of keys that would fail far from their cause, or run and give poor results.

The builders of the backbones call these checks, since a builder sees the whole config.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    PanopticFPN,
    ProposalNetwork,
    SemanticSegmentor,
)
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.utils import comm

Shapes = Mapping[str, ShapeSpec]

# Mask heads that read MODEL.ROI_MASK_HEAD.IN_FEATURES.
_POINT_HEADS = ("PointRendMaskHead", "ImplicitPointRendMaskHead")


def is_dense_detector(cfg: CfgNode) -> bool:
    """Tell whether MODEL.META_ARCHITECTURE is a one-stage detector.

    Args:
        cfg: The whole config.

    Returns:
        Whether it is a RetinaNet, FCOS or their kin.
    """
    return _is_a(cfg, DenseDetector)


def has_semantic_head(cfg: CfgNode) -> bool:
    """Tell whether MODEL.META_ARCHITECTURE has MODEL.SEM_SEG_HEAD.

    Args:
        cfg: The whole config.

    Returns:
        Whether it has.
    """
    return _is_a(cfg, SemanticSegmentor, PanopticFPN)


def _is_a(cfg: CfgNode, *kinds: type) -> bool:
    name = cfg.MODEL.META_ARCHITECTURE
    return name in META_ARCH_REGISTRY and issubclass(META_ARCH_REGISTRY.get(name), kinds)


def check_detector(cfg: CfgNode, shapes: Shapes) -> None:
    """Refuse a detector that asks its backbone for what that does not have.

    Args:
        cfg: The whole config. Meta-architectures that are none of Detectron2's are not looked at.
        shapes: The backbone's ``output_shape()``.

    Raises:
        ValueError: If a feature is missing, anchors do not fit the levels, the strides of the
            pooler are no powers of two one after another, or the heads of a C4 detector cannot
            read the map.
    """
    for key, names in _read_features(cfg).items():
        _check_names(cfg, key, names, shapes)
    if _has_rpn(cfg):
        _check_anchors(cfg, "MODEL.RPN.IN_FEATURES", cfg.MODEL.RPN.IN_FEATURES)
    if is_dense_detector(cfg):
        _check_anchors(cfg, "MODEL.RETINANET.IN_FEATURES", cfg.MODEL.RETINANET.IN_FEATURES)
    if _is_a(cfg, GeneralizedRCNN):
        _check_pooler(cfg, shapes)


def _has_rpn(cfg: CfgNode) -> bool:
    made = cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals"
    return made and _is_a(cfg, GeneralizedRCNN, ProposalNetwork)


def _read_features(cfg: CfgNode) -> dict[str, Sequence[str]]:
    """Names of features by the key that asks for them."""
    model = cfg.MODEL
    asked: dict[str, Sequence[str]] = {}
    if _has_rpn(cfg):
        asked["MODEL.RPN.IN_FEATURES"] = model.RPN.IN_FEATURES
    if _is_a(cfg, GeneralizedRCNN):
        asked["MODEL.ROI_HEADS.IN_FEATURES"] = model.ROI_HEADS.IN_FEATURES
        # PointRend adds these two keys; other heads read those of the boxes.
        if model.MASK_ON and model.ROI_MASK_HEAD.NAME in _POINT_HEADS:
            asked["MODEL.ROI_MASK_HEAD.IN_FEATURES"] = model.ROI_MASK_HEAD.IN_FEATURES
        if model.MASK_ON and model.ROI_MASK_HEAD.get("POINT_HEAD_ON"):
            asked["MODEL.POINT_HEAD.IN_FEATURES"] = model.POINT_HEAD.IN_FEATURES
    if has_semantic_head(cfg):
        asked["MODEL.SEM_SEG_HEAD.IN_FEATURES"] = model.SEM_SEG_HEAD.IN_FEATURES
    if is_dense_detector(cfg):
        asked["MODEL.RETINANET.IN_FEATURES"] = model.RETINANET.IN_FEATURES
    return asked


def _check_names(cfg: CfgNode, key: str, names: Sequence[str], shapes: Shapes) -> None:
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        raise ValueError(
            f"{key} is {list(names)}, but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} gives "
            f"{', '.join(shapes)} and no {' or '.join(missing) or 'level without a name'}; name "
            f"some of those in {key}, or change the backbone (levels p<n>: MODEL.CLIP_FPN.STRIDES; "
            "res<n>: build_clip_vit_stages_backbone with MODEL.RESNETS.OUT_FEATURES)"
        )


def _check_anchors(cfg: CfgNode, key: str, names: Sequence[str]) -> None:
    if cfg.MODEL.ANCHOR_GENERATOR.NAME != "DefaultAnchorGenerator":
        return
    for part in ("SIZES", "ASPECT_RATIOS"):
        given = len(cfg.MODEL.ANCHOR_GENERATOR[part])
        if given not in (1, len(names)):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.{part} has {given} lists for the {len(names)} levels of "
                f"{key} {list(names)}; give one list for all, or one for each"
            )


def _check_pooler(cfg: CfgNode, shapes: Shapes) -> None:
    key = "MODEL.ROI_HEADS.IN_FEATURES"
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    strides = [shapes[name].stride for name in names]
    doubled = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if not doubled or any(stride < 1 or stride & (stride - 1) for stride in strides):
        raise ValueError(
            f"{key} {list(names)} has strides of {strides} px, but the pooler of regions needs "
            "powers of two, each twice the one before; take consecutive levels of "
            "build_clip_vit_fpn_backbone or build_clip_vit_simple_fpn_backbone"
        )
    heads = cfg.MODEL.ROI_HEADS.NAME
    # Subclasses bring a stage of their own.
    if heads not in ROI_HEADS_REGISTRY or ROI_HEADS_REGISTRY.get(heads) is not Res5ROIHeads:
        return
    channels = 4 * cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    got = [shapes[name].channels for name in names]
    if got != [channels]:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME {heads} reads one map of {channels} channels (4 times "
            f"MODEL.RESNETS.RES2_OUT_CHANNELS), but {key} {list(names)} has {got}; set "
            "MODEL.BACKBONE.NAME to build_clip_vit_stages_backbone and name res4"
        )


def refuse_sync_bn_on_cpus(cfg: CfgNode) -> None:
    """Refuse SyncBN where several processes train on CPUs.

    Args:
        cfg: The whole config.

    Raises:
        ValueError: If a norm is SyncBN there.
    """
    if cfg.MODEL.DEVICE != "cpu" or comm.get_world_size() == 1:
        return
    for part in ("FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        if cfg.MODEL[part].NORM == "SyncBN":
            raise ValueError(
                f"SyncBN does not train in several processes on CPUs; set MODEL.{part}.NORM to "
                "naiveSyncBN, GN or LN"
            )


def check_square(cfg: CfgNode) -> None:
    """Refuse images that Detectron2's padding to a square would cut.

    Args:
        cfg: The whole config.

    Raises:
        ValueError: If images may exceed MODEL.CLIP_FPN.SQUARE_SIZE.
    """
    square = cfg.MODEL.CLIP_FPN.SQUARE_SIZE
    if not square:
        return
    train_key = "LSJ_SIZE" if cfg.INPUT.LSJ_SIZE else "MAX_SIZE_TRAIN"
    largest = {
        f"INPUT.{train_key}": cfg.INPUT[train_key],
        # 0 keeps every image as it is.
        "INPUT.MAX_SIZE_TEST": cfg.INPUT.MAX_SIZE_TEST if cfg.INPUT.MIN_SIZE_TEST else math.inf,
    }
    for key, size in largest.items():
        if size > square:
            raise ValueError(
                f"images of up to {size} px do not fit in a square of MODEL.CLIP_FPN.SQUARE_SIZE "
                f"{square}; lower {key}, or set SQUARE_SIZE to 0 to pad no further than needed"
            )


def refuse_bgr(cfg: CfgNode, *, name: str, pixel_mean: Sequence[float]) -> None:
    """Refuse images or pixel statistics in Detectron2's default order of channels.

    Args:
        cfg: The whole config.
        name: Name of the CLIP for the message.
        pixel_mean: Its mean, RGB, 0 to 255.

    Raises:
        ValueError: If INPUT.FORMAT is not RGB, or MODEL.PIXEL_MEAN is nearer to the tower's mean
            when it is read backwards.
    """
    refuse_bgr_pixels(
        cfg.INPUT.FORMAT,
        cfg.MODEL.PIXEL_MEAN,
        name=name,
        pixel_mean=pixel_mean,
        keys=("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"),
    )


def refuse_bgr_pixels(
    image_format: str,
    mean: Sequence[float],
    *,
    name: str,
    pixel_mean: Sequence[float],
    keys: tuple[str, str, str],
) -> None:
    """Refuse BGR by the values of its keys.

    Args:
        image_format: Format of the images.
        mean: Mean that is taken off them, 0 to 255.
        name: Name of the CLIP for the message.
        pixel_mean: Its mean, RGB, 0 to 255.
        keys: Names of the keys of the format, the mean and the deviation.

    Raises:
        ValueError: If the format is not RGB, or ``mean`` is nearer to the tower's when it is read
            backwards.
    """
    format_key, mean_key, std_key = keys
    if image_format != "RGB":
        raise ValueError(
            f"{format_key} is {image_format}, but {name} was trained on RGB; set {format_key} "
            f"RGB, and {mean_key} and {std_key} in the same order"
        )
    mean = list(mean)
    forward, backward = (math.dist(order, pixel_mean) for order in (mean, mean[::-1]))
    if backward < forward:
        raise ValueError(
            f"{mean_key} is {[round(value, 3) for value in mean]}, in the order BGR, but {name} "
            f"was trained on RGB with mean {[round(value, 3) for value in pixel_mean]}; turn "
            f"{mean_key} and {std_key} round"
        )
