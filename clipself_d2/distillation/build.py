"""The towers and texts of a distiller from a config."""

from detectron2.config import CfgNode
from torch import Tensor

from clipself_d2.clip import VisionTower, load_clip
from clipself_d2.distillation.base import Towers
from clipself_d2.parts.image_tower import build_image_tower, load_original_tower
from clipself_d2.parts.text_embeddings import training_embeddings


def towers_from_config(
    cfg: CfgNode, *, original: VisionTower | None = None, teacher: VisionTower | None = None
) -> Towers:
    """Read MODEL.CLIP, MODEL.DISTILL.PAD_TO_SQUARE and the pixel statistics.

    Args:
        cfg: The whole config.
        original: Image tower of MODEL.CLIP.PRETRAINED, where the caller has built it.
        teacher: Teacher other than that.

    Returns:
        Student and teacher. The student has the weights of MODEL.CLIP.WEIGHTS, or else the
        original's. Windows are for the student's dense features alone: pictures and crops are
        embedded with global attention.

    Raises:
        ValueError: If nothing of the student is trained.
    """
    if cfg.MODEL.CLIP.TRAINABLE_BLOCKS == 0:
        raise ValueError(
            "MODEL.CLIP.TRAINABLE_BLOCKS is 0, so nothing of the student is trained; set it to a "
            "number of last blocks, or -1 for all"
        )
    if original is None:
        original = load_original_tower(cfg)
    # SOURCE both draws up to MAX_BOXES from each of its two sources.
    slots = cfg.INPUT.REGIONS.MAX_BOXES * (2 if cfg.INPUT.REGIONS.SOURCE == "both" else 1)
    return Towers(
        student=build_image_tower(cfg, original=original, reads_embedding=True),
        teacher=original if teacher is None else teacher,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        pad_to_square=cfg.MODEL.DISTILL.PAD_TO_SQUARE,
        region_slots=slots if cfg.MODEL.CLIP.COMPILE != "off" else 0,
    )


def text_from_config(cfg: CfgNode) -> tuple[Tensor, float]:
    """Embed the training vocabulary.

    Args:
        cfg: The whole config.

    Returns:
        (K, D) unit-norm class embeddings, and CLIP's multiplier of the cosine.

    Raises:
        FileNotFoundError: As ``training_embeddings``.
        ValueError: Likewise.
    """
    clip = cfg.MODEL.CLIP
    scale = load_clip(clip.NAME, clip.PRETRAINED or None).logit_scale
    return training_embeddings(cfg).embeddings_KD, scale
