"""MODEL.CLIP as image and text tower, and MODEL.VFM; nothing else reads these keys.

The keys that a model reads for itself, which blocks it takes (TAP_BLOCKS), are read beside it.
"""

import copy
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from detectron2.config import CfgNode
from torch import Tensor

from clipself_d2.clip import ClipModel, VisionTower, load_clip, load_tower
from clipself_d2.clip.towers.drop_path import set_drop_path
from clipself_d2.clip.towers.tokens import TokenTower
from clipself_d2.clip.vision_model import VisionModel
from clipself_d2.parts.dense_form import check_form

logger = logging.getLogger(__name__)

# ImageNet's mean and std, with which F-ViT was published, are within 15 % of CLIP's.
_PIXEL_TOLERANCE = 0.25
# Keys of MODEL.CLIP that some models have no use for, empty or 0 by default.
OPTIONAL_KEYS = ("TAP_BLOCKS", "TEXT_TRAINABLE_BLOCKS")


def load_whole_clip(cfg: CfgNode) -> ClipModel:
    """Build the CLIP of MODEL.CLIP.NAME and PRETRAINED, both towers, in eval mode.

    Its text tower is trained as TEXT_TRAINABLE_BLOCKS and TRAINABLE_PARTS say; its image tower is
    the original, for ``build_image_tower`` to make the trained one of.
    """
    options = cfg.MODEL.CLIP
    with _naming("MODEL.CLIP.NAME, PRETRAINED, TEXT_TRAINABLE_BLOCKS and TRAINABLE_PARTS"):
        clip = load_clip(options.NAME, options.PRETRAINED or None, precision=options.PRECISION)
        clip.text.freeze(options.TEXT_TRAINABLE_BLOCKS, parts=options.TRAINABLE_PARTS)
    return clip


def load_original_tower(cfg: CfgNode) -> VisionTower:
    """Build the image tower of MODEL.CLIP.NAME and PRETRAINED, a distillation's teacher.

    It is in eval mode, with global attention everywhere.
    """
    options = cfg.MODEL.CLIP
    with _naming("MODEL.CLIP.NAME and PRETRAINED"):
        tower = load_tower(options.NAME, options.PRETRAINED or None, precision=options.PRECISION)
    if isinstance(tower, TokenTower):
        tower.set_compile(options.COMPILE)
    return tower


def build_image_tower(
    cfg: CfgNode,
    *,
    original: VisionTower | None = None,
    reads_embedding: bool,
    used: Collection[str] = (),
) -> VisionTower:
    """Turn MODEL.CLIP into the image tower that a model works with.

    Its weights are those of MODEL.CLIP.WEIGHTS, else of PRETRAINED, else random; windows,
    checkpointing, stochastic depth, the form of dense features and what is trained are set.

    Args:
        cfg: The whole config.
        original: The tower of PRETRAINED, where the caller has built it: it is copied unless
            WEIGHTS names another. None builds it.
        reads_embedding: Whether the model's loss reads the dense embedding, so that what stands
            behind the blocks may learn; detectors read blocks.
        used: Which of ``OPTIONAL_KEYS`` the model reads; a warning names the others where they are
            not at their defaults.

    Returns:
        The tower in eval mode.

    Raises:
        ValueError: If the weights do not fit, the tower cannot have such windows, blocks or
            stochastic depth, or images are BGR.
    """
    options = cfg.MODEL.CLIP
    if original is None or options.WEIGHTS:
        weights = options.WEIGHTS or options.PRETRAINED or None
        with _naming("MODEL.CLIP.NAME, WEIGHTS and PRETRAINED"):
            tower = load_tower(options.NAME, weights, precision=options.PRECISION)
    else:
        tower = copy.deepcopy(original)
    # Compared at the end, when all of the form is set, and of a student's file alone.
    trained_form, tower.trained_form = tower.trained_form, None
    tower.any_form = options.ANY_FORM
    tower.pixel_form = {  # type: ignore[assignment]
        f"MODEL.{key}": list(cfg.MODEL[key]) for key in ("PIXEL_MEAN", "PIXEL_STD")
    }
    check_pixels(cfg, tower)
    _warn_of_unused(cfg, used)
    keys = "WINDOW_SIZE, GLOBAL_BLOCKS, DENSE_FORM, TRAINABLE_BLOCKS, TRAINABLE_PARTS and DROP_PATH"
    with _naming(f"MODEL.CLIP.{keys}"):
        tower.set_attention(window_size=options.WINDOW_SIZE, global_blocks=options.GLOBAL_BLOCKS)
        tower.checkpointing = options.ACTIVATION_CHECKPOINTING
        _set_compile(tower, options.COMPILE)
        tower.set_dense_form(options.DENSE_FORM)
        if isinstance(tower, TokenTower) and tower.dense_form.attention == "external":
            tower.proxy = _proxy(cfg)
        tower.freeze(
            options.TRAINABLE_BLOCKS, behind=reads_embedding, parts=options.TRAINABLE_PARTS
        )
        trained = tower.num_blocks if tower.trained_blocks < 0 else tower.trained_blocks
        set_drop_path(tower, options.DROP_PATH, trained)
    if options.WEIGHTS:
        check_form(tower, trained_form, "MODEL.CLIP.WEIGHTS")
    return tower


def build_vfm(cfg: CfgNode) -> VisionModel:
    """Build the frozen vision foundation model of MODEL.VFM."""
    with _naming("MODEL.VFM.NAME and WEIGHTS"):
        return VisionModel(cfg.MODEL.VFM.NAME, cfg.MODEL.VFM.WEIGHTS)


def _proxy(cfg: CfgNode) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    """Features by MODEL.VFM, which is no part of the tower and of its checkpoints."""
    model = build_vfm(cfg)

    def features(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        return model.to(pixels.device)(pixels, grid)

    return features


def _set_compile(tower: VisionTower, mode: str) -> None:
    if isinstance(tower, TokenTower):
        tower.set_compile(mode)
    elif mode != "off":
        logger.warning(
            "MODEL.CLIP.COMPILE %s is for transformers; %s runs without it", mode, tower.name
        )


def check_pixels(cfg: CfgNode, tower: VisionTower) -> None:
    """Hold INPUT.FORMAT, MODEL.PIXEL_MEAN and PIXEL_STD against what a tower was trained on."""
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    refuse_bgr(
        cfg.INPUT.FORMAT, mean, tower, keys=("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
    )
    pairs = zip([*mean, *std], [*tower.pixel_mean, *tower.pixel_std], strict=True)
    if not all(abs(got - native) <= _PIXEL_TOLERANCE * native for got, native in pairs):
        native = [[round(value, 3) for value in row] for row in (tower.pixel_mean, tower.pixel_std)]
        logger.warning(
            "images come with mean %s and std %s, but %s was trained with mean %s and std %s; its "
            "features will be poor unless MODEL.PIXEL_MEAN and MODEL.PIXEL_STD say so",
            *(mean, std, tower.name, *native),
        )


def refuse_bgr(
    image_format: str, mean: Sequence[float], tower: VisionTower, *, keys: tuple[str, str, str]
) -> None:
    """Refuse images or pixel statistics in Detectron2's default order of channels.

    ``mean`` (0 to 255) is refused that is nearer to the tower's when it is read backwards; ``keys``
    are those of the format, the mean and the deviation.
    """
    format_key, mean_key, std_key = keys
    if image_format != "RGB":
        raise ValueError(
            f"{format_key} is {image_format}, but {tower.name} was trained on RGB; set "
            f"{format_key} RGB, and {mean_key} and {std_key} in the same order"
        )
    mean = list(mean)
    if len(mean) != 3:
        raise ValueError(f"{mean_key} has {len(mean)} values but CLIP takes RGB; give it three")
    if math.dist(mean[::-1], tower.pixel_mean) < math.dist(mean, tower.pixel_mean):
        given, native = ([round(value, 3) for value in row] for row in (mean, tower.pixel_mean))
        raise ValueError(
            f"{mean_key} is {given}, in the order BGR, but {tower.name} was trained on RGB with "
            f"mean {native}; turn {mean_key} and {std_key} round"
        )


@contextmanager
def _naming(keys: str) -> Iterator[None]:
    """Tell which keys an error of clip/, which knows none, is about."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{error}; check {keys}") from error


def _warn_of_unused(cfg: CfgNode, used: Collection[str]) -> None:
    given = {key: cfg.MODEL.CLIP[key] for key in OPTIONAL_KEYS if key not in used}
    unused = [f"MODEL.CLIP.{key} {value}" for key, value in given.items() if value]
    if unused:
        keys, model = " and ".join(unused), cfg.MODEL.META_ARCHITECTURE
        logger.warning("%s is not used by MODEL.META_ARCHITECTURE %s", keys, model)
