"""Parts of a built detector that would fail far from their cause; names of keys are LazyConfig's.

yaml configs are checked by ``compatibility`` before anything is built.
"""

from collections.abc import Sequence
from itertools import pairwise

from detectron2.modeling import Backbone, GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from clipself_d2.backbones.compatibility import Shapes, refuse_bgr_pixels
from clipself_d2.clip.towers.contract import VisionTower


def check_model(model: nn.Module) -> None:
    """Refuse a detector whose parts do not fit its backbone.

    Args:
        model: The built model. One that is no detector of Detectron2's is not looked at.

    Raises:
        ValueError: If a feature is missing, anchors or the pooler have other strides than the
            features, or pixels are BGR for a CLIP tower.
    """
    if not isinstance(model, GeneralizedRCNN | DenseDetector):
        return
    backbone: Backbone = model.backbone
    shapes = backbone.output_shape()
    _check_pixels(model)
    if isinstance(model, DenseDetector):
        _check_dense(model, shapes)
        return
    _check_proposals(model.proposal_generator, shapes)
    _check_heads(model.roi_heads, shapes)


def _check_pixels(model: GeneralizedRCNN | DenseDetector) -> None:
    for module in model.backbone.modules():
        if isinstance(module, VisionTower):
            refuse_bgr_pixels(
                getattr(model, "input_format", None) or "RGB",
                model.pixel_mean.flatten().tolist(),
                name=module.name,
                pixel_mean=module.pixel_mean,
                keys=("model.input_format", "model.pixel_mean", "model.pixel_std"),
            )


def _check_dense(model: DenseDetector, shapes: Shapes) -> None:
    key = "model.head_in_features"
    names = model.head_in_features
    _check_names(key, names, shapes)
    strides = [shapes[name].stride for name in names]
    if any(coarse <= fine for fine, coarse in pairwise(strides)):
        raise ValueError(
            f"{key} {list(names)} has strides of {strides} px, which do not ascend; name levels "
            "such as p3 to p7, without clip"
        )
    _check_anchors("model.anchor_generator", model.anchor_generator, key, strides)


def _check_proposals(generator: nn.Module | None, shapes: Shapes) -> None:
    names = getattr(generator, "in_features", None)
    if names is None:
        return
    key = "model.proposal_generator.in_features"
    _check_names(key, names, shapes)
    anchors = getattr(generator, "anchor_generator", None)
    strides = [shapes[name].stride for name in names]
    _check_anchors("model.proposal_generator.anchor_generator", anchors, key, strides)


def _check_anchors(
    key: str, anchors: nn.Module | None, features_key: str, strides: Sequence[int]
) -> None:
    given = getattr(anchors, "strides", None)
    if given is not None and list(given) != list(strides):
        raise ValueError(
            f"{key}.strides is {list(given)}, but the features of {features_key} have strides of "
            f"{list(strides)} px; give the anchors those"
        )


def _check_heads(heads: nn.Module, shapes: Shapes) -> None:
    pairs = (
        ("in_features", "pooler"),
        ("box_in_features", "box_pooler"),
        ("mask_in_features", "mask_pooler"),
    )
    # StandardROIHeads has ``in_features`` too, a copy of the box head's.
    has_box = hasattr(heads, "box_in_features")
    for features, pooler in pairs[1:] if has_box else pairs[:1]:
        names = getattr(heads, features, None)
        if names is None:
            continue
        _check_names(f"model.roi_heads.{features}", names, shapes)
        levels = getattr(getattr(heads, pooler, None), "level_poolers", None)
        if levels is None:
            continue
        strides = [shapes[name].stride for name in names]
        given = [round(1 / level.spatial_scale, 3) for level in levels]
        if given != strides:
            raise ValueError(
                f"model.roi_heads.{pooler}.scales are those of strides {given} px, but the "
                f"features of model.roi_heads.{features} {list(names)} have strides of {strides} "
                "px; scales are 1 / stride, powers of two, each half the one before"
            )


def _check_names(key: str, names: Sequence[str], shapes: Shapes) -> None:
    missing = [name for name in names if name not in shapes]
    if missing or not names:
        raise ValueError(
            f"{key} is {list(names)}, but model.backbone gives {', '.join(shapes)} and no "
            f"{' or '.join(missing) or 'level without a name'}; name some of those in {key}, or "
            "change the levels by model.backbone.strides and model.backbone.top_block"
        )
