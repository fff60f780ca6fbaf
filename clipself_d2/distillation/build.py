"""The towers and texts of a distiller from a config."""

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from clipself_d2.clip import VisionTower, load_clip
from clipself_d2.distillation.base import Towers
from clipself_d2.parts.image_tower import build_image_tower, load_original_tower
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary


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
    return Towers(
        student=build_image_tower(cfg, original=original, reads_embedding=True),
        teacher=original if teacher is None else teacher,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        pad_to_square=cfg.MODEL.DISTILL.PAD_TO_SQUARE,
    )


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
