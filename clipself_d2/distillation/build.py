"""The towers and texts of a distiller from a config."""

import copy

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from clipself_d2.clip import load_clip, load_tower
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary


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
    """Embed the classes of MODEL.VOCABULARY.DATASET, or of the first training set.

    Args:
        cfg: The whole config.

    Returns:
        (K, D) unit-norm class embeddings, and CLIP's multiplier of the cosine.

    Raises:
        ValueError: If no data set is named, it has no classes, or the file
            MODEL.VOCABULARY.EMBEDDINGS is of others.
    """
    clip, options = cfg.MODEL.CLIP, cfg.MODEL.VOCABULARY
    name = options.DATASET or next(iter(cfg.DATASETS.TRAIN), "")
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"data set {name!r} is not registered; check DATASETS.TRAIN and MODEL.VOCABULARY"
        )
    if MetadataCatalog.get(name).get("thing_classes") is None:
        # Detectron2's COCO loader learns the classes only when it reads the annotations.
        DatasetCatalog.get(name)
    vocabulary = Vocabulary.from_metadata(MetadataCatalog.get(name))
    model = load_clip(clip.NAME, clip.PRETRAINED or None)
    if not options.EMBEDDINGS:
        built = TextEmbeddings.load_or_build(
            vocabulary,
            clip=clip.NAME,
            weights=clip.PRETRAINED or None,
            templates=options.TEMPLATES,
            cache_dir=options.CACHE_DIR or None,
        )
        return built.embeddings_KD, model.logit_scale
    loaded = TextEmbeddings.load(options.EMBEDDINGS)
    if loaded.vocabulary.names != vocabulary.names:
        raise ValueError(
            f"MODEL.VOCABULARY.EMBEDDINGS {options.EMBEDDINGS} has "
            f"{loaded.vocabulary.num_classes} classes that are not the {vocabulary.num_classes} of "
            f"{name} in their order; rebuild it with tools/build_text_embeddings.py"
        )
    return loaded.embeddings_KD, model.logit_scale
