"""Parts of a built detector that would fail far from their cause, or run and give poor results.

Whoever builds a model, from yaml or from LazyConfig, calls ``check_model`` on it. What Detectron2
refuses in words of its own is left to it. Messages name the yaml key and, in brackets, the lazy
field.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, ProposalNetwork, SemanticSegmentor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.utils import comm
from torch import nn

from clipself_d2.clip import VisionTower
from clipself_d2.parts.image_tower import refuse_bgr

Shapes = Mapping[str, ShapeSpec]

_DETECTORS = (GeneralizedRCNN, ProposalNetwork, DenseDetector, SemanticSegmentor)


def check_model(model: nn.Module, cfg: CfgNode | None = None) -> None:
    """Refuse a detector whose parts do not fit its backbone.

    Args:
        model: The built model. One that is no detector of Detectron2's is not looked at.
        cfg: The yaml config that it was built from; None for LazyConfig.

    Raises:
        ValueError: If a feature is missing or never read, anchors, pooler or the heads of a C4
            detector do not fit the features, padding does not fit a semantic head or would cut
            images, pixels are BGR for a CLIP tower, or SyncBN is to train in CPU processes.
    """
    if not isinstance(model, _DETECTORS):
        return
    shapes = model.backbone.output_shape()
    _check_pixels(model)
    if cfg is not None:
        _check_sync_bn(cfg, model)
        _check_square(cfg)
    if isinstance(model, DenseDetector):
        _check_dense(model, shapes)
    if isinstance(model, GeneralizedRCNN | ProposalNetwork):
        _check_proposals(model.proposal_generator, shapes)
    if isinstance(model, GeneralizedRCNN):
        _check_heads(model.roi_heads, shapes)
    if isinstance(model, SemanticSegmentor | PanopticFPN):
        _check_semantic(model, cfg)


def _check_pixels(model: Any) -> None:
    for module in model.backbone.modules():
        if isinstance(module, VisionTower):
            refuse_bgr(
                getattr(model, "input_format", None) or "RGB",
                model.pixel_mean.flatten().tolist(),
                module,
                keys=("model.input_format", "model.pixel_mean", "model.pixel_std"),
            )


def _check_dense(model: DenseDetector, shapes: Shapes) -> None:
    key, names = "MODEL.RETINANET.IN_FEATURES (model.head_in_features)", model.head_in_features
    strides = _strides(key, names, shapes)
    if any(coarse <= fine for fine, coarse in pairwise(strides)):
        raise ValueError(
            f"{key} {list(names)} has strides of {strides} px, which do not ascend; name levels "
            "such as p3 to p7, without clip"
        )
    made = getattr(model.backbone, "strides", ())
    idle = [name for name, shape in shapes.items() if shape.stride in made and name[0] == "p"]
    idle = [name for name in idle if name not in names]
    if idle:
        raise ValueError(
            f"nothing reads {' and '.join(idle)} of the backbone, which would never learn; "
            f"take their strides out of MODEL.CLIP_FPN.STRIDES (model.backbone.strides), or name "
            f"them in {key}"
        )
    _check_anchors(getattr(model, "anchor_generator", None), key, strides)


def _check_proposals(generator: nn.Module | None, shapes: Shapes) -> None:
    names = getattr(generator, "in_features", None)
    if names is not None:
        key = "MODEL.RPN.IN_FEATURES (model.proposal_generator.in_features)"
        anchors = getattr(generator, "anchor_generator", None)
        _check_anchors(anchors, key, _strides(key, names, shapes))


def _check_anchors(anchors: nn.Module | None, key: str, strides: Sequence[int]) -> None:
    given = getattr(anchors, "strides", None)
    if given is not None and list(given) != list(strides):
        raise ValueError(
            f"the anchor generator's strides are {list(given)}, but the features of {key} have "
            f"strides of {list(strides)} px; give the anchors those"
        )


def _check_heads(heads: Any, shapes: Shapes) -> None:
    # StandardROIHeads has ``in_features`` too, a copy of the box head's.
    parts = ("box_", "mask_") if hasattr(heads, "box_in_features") else ("",)
    for part in parts:
        names = getattr(heads, f"{part}in_features", None)
        if names is None:
            continue
        key = f"MODEL.ROI_HEADS.IN_FEATURES (model.roi_heads.{part}in_features)"
        strides = _strides(key, names, shapes)
        levels = getattr(getattr(heads, f"{part}pooler", None), "level_poolers", ())
        given = [round(1 / level.spatial_scale, 3) for level in levels]
        if given and given != strides:
            raise ValueError(
                f"model.roi_heads.{part}pooler.scales are those of strides {given} px, but the "
                f"features of {key} {list(names)} have strides of {strides} px; scales are "
                "1 / stride, powers of two, each half the one before"
            )
    # Subclasses bring a stage of their own.
    if type(heads) is Res5ROIHeads:
        wanted, name = heads.res5[0].conv1.in_channels, heads.in_features[0]
        if shapes[name].channels != wanted:
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME Res5ROIHeads reads {wanted} channels (4 times "
                f"MODEL.RESNETS.RES2_OUT_CHANNELS), but {name} has {shapes[name].channels}; set "
                "MODEL.BACKBONE.NAME to build_clip_vit_stages_backbone and name res4"
            )


def _check_semantic(model: SemanticSegmentor | PanopticFPN, cfg: CfgNode | None) -> None:
    backbone = model.backbone
    shapes = backbone.output_shape()
    names = model.sem_seg_head.in_features if cfg is None else cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
    # Detectron2 leaves out, without a word, what is not there.
    largest = max(_strides("MODEL.SEM_SEG_HEAD.IN_FEATURES", names, shapes))
    side = backbone.padding_constraints.get("square_size") or backbone.size_divisibility
    if side % largest:
        raise ValueError(
            f"a semantic head doubles maps until they meet, but sides of multiples of {side} "
            f"px leave parts of cells of {largest} px; set MODEL.BACKBONE.NAME to one of the "
            "build_semantic_clip_vit_..._backbone (model.backbone.pad_to_stride=True)"
        )


def _strides(key: str, names: Sequence[str], shapes: Shapes) -> list[int]:
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        raise ValueError(
            f"{key} is {list(names)}, but the backbone gives {', '.join(shapes)} and no "
            f"{' or '.join(missing) or 'level without a name'}; name some of those, or change "
            "MODEL.BACKBONE.NAME (model.backbone)"
        )
    return [shapes[name].stride for name in names]


def _check_sync_bn(cfg: CfgNode, model: nn.Module) -> None:
    if cfg.MODEL.DEVICE != "cpu" or comm.get_world_size() == 1:
        return
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise ValueError(
            "SyncBN does not train in several processes on CPUs; set the NORM of MODEL.FPN, "
            "MODEL.ROI_BOX_HEAD and MODEL.ROI_MASK_HEAD to naiveSyncBN, GN or LN"
        )


def _check_square(cfg: CfgNode) -> None:
    """Detectron2's padding to a square cuts larger images."""
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
