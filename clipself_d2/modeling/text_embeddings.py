"""The text embeddings that a detector is built with."""

import logging

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

logger = logging.getLogger(__name__)

DETECTRON2_NUM_CLASSES = 80


def training_vocabulary(cfg: CfgNode) -> Vocabulary:
    """Read the classes of MODEL.VOCABULARY.DATASET, or of the first training set.

    Args:
        cfg: The whole config.

    Returns:
        The vocabulary.

    Raises:
        ValueError: If no data set is named, or the one named has no classes.
    """
    name = cfg.MODEL.VOCABULARY.DATASET or next(iter(cfg.DATASETS.TRAIN), "")
    if not name:
        raise ValueError(
            "there is no data set to take classes from; set MODEL.VOCABULARY.DATASET or "
            "DATASETS.TRAIN"
        )
    if name not in DatasetCatalog.list():
        raise ValueError(f"data set {name!r} is not registered; check MODEL.VOCABULARY.DATASET")
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        raise ValueError(f"the metadata of {name} has no thing_classes to take a vocabulary from")
    return Vocabulary.from_metadata(metadata)


def training_embeddings(cfg: CfgNode) -> TextEmbeddings:
    """Load or build the text embeddings of the training vocabulary.

    Args:
        cfg: The whole config.

    Returns:
        Embeddings whose classes are those of ``training_vocabulary``.

    Raises:
        ValueError: If MODEL.VOCABULARY.EMBEDDINGS is damaged, or of another vocabulary or CLIP.
        FileNotFoundError: If that file is missing.
    """
    vocabulary = training_vocabulary(cfg)
    given = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if given not in (DETECTRON2_NUM_CLASSES, vocabulary.num_classes):
        logger.warning(
            "MODEL.ROI_HEADS.NUM_CLASSES %d is ignored: the vocabulary has %d classes",
            given,
            vocabulary.num_classes,
        )
    path = cfg.MODEL.VOCABULARY.EMBEDDINGS
    if not path:
        return TextEmbeddings.load_or_build(
            vocabulary,
            clip=cfg.MODEL.CLIP.NAME,
            weights=cfg.MODEL.CLIP.PRETRAINED or None,
            templates=cfg.MODEL.VOCABULARY.TEMPLATES,
            cache_dir=cfg.MODEL.VOCABULARY.CACHE_DIR or None,
        )
    loaded = TextEmbeddings.load(path)
    if loaded.clip != cfg.MODEL.CLIP.NAME:
        raise ValueError(
            f"text embeddings {path} come from {loaded.clip}, but MODEL.CLIP.NAME is "
            f"{cfg.MODEL.CLIP.NAME}; rebuild them or empty MODEL.VOCABULARY.EMBEDDINGS"
        )
    if loaded.vocabulary.names != vocabulary.names:
        raise ValueError(
            f"text embeddings {path} are of {loaded.vocabulary.num_classes} other classes than "
            f"the {vocabulary.num_classes} of the training set; rebuild them or empty "
            "MODEL.VOCABULARY.EMBEDDINGS"
        )
    made_from = (loaded.clip, loaded.weights, loaded.templates)
    return TextEmbeddings(vocabulary, loaded.embeddings_KD, loaded.background_D, *made_from)
