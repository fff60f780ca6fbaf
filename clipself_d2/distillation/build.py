"""The towers and texts of a distiller from a config."""

import copy

from detectron2.config import CfgNode
from torch import Tensor

from clipself_d2.clip import load_clip, load_tower
from clipself_d2.parts.text_embeddings import training_embeddings


def towers_from_config(cfg: CfgNode) -> dict[str, object]:
    """Read MODEL.CLIP, MODEL.DISTILL and the pixel statistics.

    Args:
        cfg: The whole config.

    Returns:
        Arguments of ``RegionDistiller``. The teacher has the weights of MODEL.CLIP.PRETRAINED, the
        student those of MODEL.CLIP.WEIGHTS, or else the teacher's. Windows are for the student's
        dense features alone: pictures and crops are embedded with global attention.
    """
    clip, distill = cfg.MODEL.CLIP, cfg.MODEL.DISTILL
    teacher = load_tower(clip.NAME, clip.PRETRAINED or None, precision=clip.PRECISION)
    if clip.WEIGHTS:
        student = load_tower(clip.NAME, clip.WEIGHTS, precision=clip.PRECISION)
    else:
        student = copy.deepcopy(teacher)
    student.set_attention(window_size=clip.WINDOW_SIZE, global_blocks=clip.GLOBAL_BLOCKS)
    student.checkpointing = clip.ACTIVATION_CHECKPOINTING
    return {
        "student": student,
        "teacher": teacher,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "trainable_blocks": distill.TRAINABLE_BLOCKS,
        "train_embedding": distill.TRAIN_EMBEDDING,
        "pad_to_square": distill.PAD_TO_SQUARE,
    }


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
