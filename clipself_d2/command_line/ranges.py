"""What the values of keys may be: one table, read once where a config comes in."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
)
from fvcore.common.registry import Registry
from omegaconf import DictConfig, OmegaConf

from clipself_d2.clip.fine_tuning import RULES as RULES_OF_PARTS
from clipself_d2.clip.precision import PRECISIONS
from clipself_d2.clip.towers.compiling import COMPILE_MODES
from clipself_d2.clip.towers.dense_form import DENSE_FORMS
from clipself_d2.data.detection_mapper import FLIPS
from clipself_d2.data.region_sampler import REGION_SOURCES
from clipself_d2.detection.offline_proposals import ANNOTATED_BOXES, FROZEN_RPN
from clipself_d2.layers.nms import SOFT_NMS_METHODS
from clipself_d2.parts.words import did_you_mean, shortened
from clipself_d2.referring.norms import NORMS
from clipself_d2.runs.checkpoints import leaves
from clipself_d2.segmentation.panoptic import POOLINGS
from clipself_d2.vocabulary.templates import TEMPLATE_NAMES

# Whether a value is right, and what is.
Rule = tuple[Callable[[Any], bool], str]
# Pictures of more pixels a side fit in no memory.
_LARGEST_SIDE = 2**15


def _between(least: float, most: float = math.inf) -> Rule:
    ending = "" if most == math.inf else f" and at most {most:g}"
    return lambda value: least <= value <= most, f"it is at least {least:g}{ending}"


def _above(least: float, most: float = math.inf) -> Rule:
    ending = "" if most == math.inf else f" and at most {most:g}"
    return lambda value: least < value <= most, f"it is above {least:g}{ending}"


def _each(rule: Rule, fewest: int = 1, most: float = math.inf) -> Rule:
    def is_right(values: Any) -> bool:
        listed = values if isinstance(values, list | tuple) else [values]
        return fewest <= len(listed) <= most and all(_holds(rule, value) for value in listed)

    numbers = "a number, or several" if most == math.inf else f"{fewest} numbers"
    return is_right, f"it is {numbers}, of each {rule[1]}"


_COUNT, _NATURAL, _SHARE = _between(1), _between(0), _between(0, 1)
_SIDE, _BELOW_ONE = _between(1, _LARGEST_SIDE), _between(0, 0.999999)
_RULES: dict[Rule, str] = {
    _COUNT: """
        MODEL.RETINANET.NUM_CLASSES TEST.IMS_PER_BATCH SOLVER.IMS_PER_BATCH SOLVER.MAX_ITER
        SOLVER.CHECKPOINT_PERIOD SOLVER.ACCUMULATION_STEPS INPUT.MAX_SIZE_TRAIN
        INPUT.MAX_SIZE_TEST INPUT.REGIONS.MAX_BOXES MODEL.DISTILL.SAMPLED_CLASSES
        MODEL.OV_PANOPTIC.NUM_QUERIES MODEL.OV_PANOPTIC.NUM_LAYERS MODEL.OV_PANOPTIC.NUM_POINTS
        MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.FPN.OUT_CHANNELS MODEL.ROI_HEADS.NUM_CLASSES
        MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE MODEL.RPN.BATCH_SIZE_PER_IMAGE
        MODEL.RPN.PRE_NMS_TOPK_TRAIN MODEL.RPN.PRE_NMS_TOPK_TEST MODEL.RPN.POST_NMS_TOPK_TRAIN
        MODEL.RPN.POST_NMS_TOPK_TEST""",
    _NATURAL: """
        DATALOADER.NUM_WORKERS TEST.EVAL_PERIOD TEST.PICTURES VIS_PERIOD SOLVER.WARMUP_ITERS
        INPUT.MIN_SIZE_TEST SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM
        SOLVER.WEIGHT_DECAY_BIAS SOLVER.BACKBONE_MULTIPLIER SOLVER.BIAS_LR_FACTOR
        MODEL.CLIP_FPN.SQUARE_SIZE MODEL.CLIP.WINDOW_SIZE MODEL.OPEN_VOCAB.BACKGROUND_WEIGHT
        MODEL.OPEN_VOCAB.FOCAL_GAMMA MODEL.CRIS.NUM_LAYERS
        MODEL.OV_PANOPTIC.PIXEL_ATTENTION_LAYERS MODEL.CRIS.KERNEL_SIZE
        MODEL.ROI_HEADS.NMS_THRESH_TEST MODEL.RPN.NMS_THRESH MODEL.RETINANET.NMS_THRESH_TEST""",
    _above(0): """
        MODEL.OPEN_VOCAB.SCALE MODEL.OPEN_VOCAB.CLIP_SCALE INPUT.REGIONS.CROP_ENLARGE
        SOLVER.ADAM_EPS SOLVER.GAMMA SOLVER.CLIP_GRADIENTS.CLIP_VALUE
        SOLVER.CLIP_GRADIENTS.NORM_TYPE""",
    _SHARE: """
        MODEL.OV_PANOPTIC.RECOGNITION MODEL.OPEN_VOCAB.CLIP_OBJECTNESS
        MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA MODEL.OPEN_VOCAB.ENSEMBLE_BETA
        MODEL.DISTILL.STUDENT_SHARE MODEL.ROI_HEADS.SCORE_THRESH_TEST SOLVER.WARMUP_FACTOR
        MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.RPN.POSITIVE_FRACTION
        MODEL.RETINANET.SCORE_THRESH_TEST DATALOADER.REPEAT_THRESHOLD""",
    _BELOW_ONE: "MODEL.CLIP.DROP_PATH MODEL.CRIS.DROPOUT SOLVER.MOMENTUM",
    _above(0, 1): "SOLVER.LAYER_DECAY",
    _between(-1): """
        MODEL.CLIP.TRAINABLE_BLOCKS MODEL.CLIP.TEXT_TRAINABLE_BLOCKS MODEL.BACKBONE.FREEZE_AT""",
    _between(-1, 2**31): "SEED",
    _between(0, _LARGEST_SIDE): "INPUT.LSJ_SIZE",
    _between(3, 77): "MODEL.CRIS.WORD_LEN",
    _SIDE: "INPUT.REFER_SIZE",
    _each(_SIDE): "INPUT.REGIONS.IMAGE_SIZES",
    _each(_COUNT): "INPUT.MIN_SIZE_TRAIN",
    _each(_BELOW_ONE, 2, 2): "SOLVER.ADAM_BETAS",
    _each(_NATURAL, 0): "MODEL.CLIP.GLOBAL_BLOCKS MODEL.CLIP.TAP_BLOCKS SOLVER.STEPS",
    _each(_above(0)): "MODEL.PIXEL_STD",
    _each(_between(-255, 255)): "MODEL.PIXEL_MEAN",
    (lambda value: 0 < value <= 1e30, "it is above 0"): "SOLVER.BASE_LR",
    (
        lambda value: value == -1 or value >= 1,
        "it is at least 1, or -1 for all",
    ): "TEST.DETECTIONS_PER_IMAGE",
    (
        lambda names: all(isinstance(name, str) for name in names),
        'it holds names, as in ("emoji_ov_train",)',
    ): "DATASETS.TRAIN DATASETS.TEST",
    (
        lambda pair: len(pair) == 2 and 0 <= pair[0] <= pair[1],
        "it is the least and the largest side, px",
    ): "INPUT.REGIONS.SIZE_RANGE",
}
RULES = {key: rule for rule, keys in _RULES.items() for key in keys.split()}

# Those of Detectron2's ``get_norm``.
_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_WORDS: dict[str, Iterable[str] | Registry] = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.CLIP.PRECISION": PRECISIONS,
    "MODEL.CLIP.COMPILE": COMPILE_MODES,
    "MODEL.CLIP.DENSE_FORM": DENSE_FORMS,
    "MODEL.CLIP.TRAINABLE_PARTS": RULES_OF_PARTS,
    "MODEL.CRIS.NORM": NORMS,
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.ROI_BOX_HEAD.NORM": _NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": _NORMS,
    "MODEL.OPEN_VOCAB.BACKGROUND": ("text", "learned", "zero"),
    "MODEL.OPEN_VOCAB.RPN_SCORE": ("", "sigmoid", "raw_logit"),
    "MODEL.OPEN_VOCAB.SOFT_NMS": ("", *SOFT_NMS_METHODS),
    "MODEL.VOCABULARY.TEMPLATES": TEMPLATE_NAMES,
    "MODEL.REGIONCLIP.TEACHER_REGIONS": ("roi", "crop"),
    "MODEL.OV_PANOPTIC.POOLING": POOLINGS,
    "INPUT.FORMAT": ("RGB", "BGR", "L", "YUV-BT.601"),
    "INPUT.RANDOM_FLIP": FLIPS,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.REGIONS.SOURCE": (*REGION_SOURCES, "rpn"),
    "SOLVER.OPTIMIZER": ("SGD", "AdamW", "Adam"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "TEST.BACKEND": ("hotcoco", "faster_coco_eval", "reference"),
}
# Proposals that come from elsewhere, of which no registry knows.
_UNREGISTERED = {"PrecomputedProposals", FROZEN_RPN, ANNOTATED_BOXES}
# What keys are called in a LazyConfig, where it has the same.
FIELDS = {
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.BASE_LR": "optimizer.lr",
    "SOLVER.WEIGHT_DECAY": "optimizer.weight_decay",
    "SOLVER.WARMUP_ITERS": "lr_multiplier.warmup_length",
    "SOLVER.WARMUP_FACTOR": "lr_multiplier.warmup_factor",
    "SOLVER.LAYER_DECAY": "optimizer.params.rate",
    "SOLVER.ACCUMULATION_STEPS": "dataloader.train.total_batch_size",
    "SOLVER.CLIP_GRADIENTS": "train.clip_grad",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "TEST.BACKEND": "dataloader.evaluator.backend",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "MODEL.RETINANET.NUM_CLASSES": "model.num_classes",
    "MODEL.DEVICE": "train.device",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.CLIP.NAME": "the tower's name in model.backbone",
    "MODEL.CLIP.PRETRAINED": "the tower's weights in model.backbone",
    "MODEL.CLIP.WEIGHTS": "the tower's weights in model.backbone",
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
}
# Fields that are counted otherwise than the key, or stand for another.
_UNEQUAL = {"SOLVER.WARMUP_ITERS", "SOLVER.ACCUMULATION_STEPS"}


def check_values(cfg: CfgNode) -> None:
    """Raise a ValueError for values out of range, and for words that nothing is called."""
    values = dict(leaves(cfg))
    for key, value in values.items():
        _check(key, key, value)
    sizes = values["INPUT.MIN_SIZE_TRAIN"]
    if values["INPUT.MIN_SIZE_TRAIN_SAMPLING"] == "range" and len(sizes) != 2:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}; with INPUT.MIN_SIZE_TRAIN_SAMPLING range it is the "
            "least and the largest size; name two, or set the sampling to choice"
        )


def check_fields(cfg: DictConfig) -> None:
    """Refuse the same values in a LazyConfig, and data sets that are not there."""
    for key, field in FIELDS.items():
        value = OmegaConf.select(cfg, field, default=None) if " " not in field else None
        if value is None or key in _UNEQUAL:
            continue
        if key.startswith("DATASETS."):
            check_registered([value] if isinstance(value, str) else list(value), field)
        else:
            _check(key, field, value)


def check_registered(names: Iterable[str], key: str) -> None:
    """Refuse names of data sets that are not registered; ``key`` or a flag holds them."""
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = did_you_mean(str(name), known)
            raise ValueError(
                f"{key} names {name!r}, which is no registered data set{near}; register it, or "
                "write KIND:PATH as docs/words.md says"
            )


def near_key(key: str, cfg: CfgNode | DictConfig) -> str:
    """Find the key of a config that was meant, as the end of a sentence."""
    if key.startswith("-"):
        return "; flags go before the keys"
    content: Any = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
    return did_you_mean(key, (name for name, _ in leaves(content)))


def name_fields(text: str) -> str:
    """Say with the fields of a LazyConfig what a message says with yaml keys."""
    # The longer first: a key may begin another.
    for key in sorted(FIELDS, key=len, reverse=True):
        text = text.replace(key, FIELDS[key])
    return text


def _check(key: str, name: str, value: Any) -> None:
    rule, words = RULES.get(key), _WORDS.get(key)
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ValueError(f"{name} is {value}, no finite number")
    if rule is not None and value is not None and not _holds(rule, value):
        raise ValueError(f"{name} is {value!r}; {rule[1]}")
    if words is not None and value != "":
        known = sorted(word for word, _ in words) if isinstance(words, Registry) else list(words)
        if value not in known and value not in _UNREGISTERED:
            hint = did_you_mean(str(value), known) or f"; it is one of {shortened(known, 20)}"
            raise ValueError(f"{name} is {value!r}, which there is not{hint}")


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return bool(rule[0](value))
    except TypeError:
        return False
