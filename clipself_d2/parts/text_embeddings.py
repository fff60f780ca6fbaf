"""The text embeddings that a detector is built with."""

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.layers.text_classifier import SigmoidTextClassifier, TextClassifier
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

logger = logging.getLogger(__name__)

_DETECTRON2_NUM_CLASSES = 80


def dataset_vocabulary(name: str, key: str = "MODEL.VOCABULARY.DATASET") -> Vocabulary:
    """Read the classes of a registered data set.

    Args:
        name: Registered name.
        key: Key that an error tells to check.

    Returns:
        The vocabulary.

    Raises:
        ValueError: If the data set is not registered or has no classes.
    """
    if name not in DatasetCatalog.list() and name not in MetadataCatalog.list():
        raise ValueError(f"data set {name!r} is not registered; check {key}")
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None and name in DatasetCatalog.list():
        # Detectron2's COCO loader learns the classes only when it reads the annotations.
        DatasetCatalog.get(name)
    if metadata.get("thing_classes") is None:
        raise ValueError(
            f"the metadata of {name} has no thing_classes to take a vocabulary from; name a "
            "detection data set in MODEL.VOCABULARY.DATASET"
        )
    return Vocabulary.from_metadata(metadata)


def dataset_embeddings(
    name: str,
    *,
    clip: str,
    weights: str | None = None,
    templates: str = "vild",
    cache_dir: str | None = None,
) -> TextEmbeddings:
    """Load or build the text embeddings of a registered data set's classes; for LazyConfig.

    Args:
        name: Registered name.
        clip: Name of the CLIP.
        weights: Its pretrained tag or file; None for random weights.
        templates: Name of a prompt set.
        cache_dir: Folder of cached embeddings; None keeps none.

    Returns:
        The embeddings.
    """
    return TextEmbeddings.load_or_build(
        dataset_vocabulary(name),
        clip=clip,
        weights=weights,
        templates=templates,
        cache_dir=cache_dir,
    )


def training_vocabulary(cfg: CfgNode) -> Vocabulary:
    """Read the classes of MODEL.VOCABULARY.DATASET, or of the first training set.

    Args:
        cfg: The whole config.

    Returns:
        The vocabulary.

    Raises:
        ValueError: If no data set is named, or the one named has no classes.
    """
    given = cfg.MODEL.VOCABULARY.DATASET
    name = given or next(iter(cfg.DATASETS.TRAIN), "")
    if not name:
        raise ValueError(
            "there is no data set to take classes from; set MODEL.VOCABULARY.DATASET or "
            "DATASETS.TRAIN"
        )
    return dataset_vocabulary(name, "MODEL.VOCABULARY.DATASET" if given else "DATASETS.TRAIN")


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
    if given not in (_DETECTRON2_NUM_CLASSES, vocabulary.num_classes):
        logger.warning(
            "MODEL.ROI_HEADS.NUM_CLASSES %d is ignored: the vocabulary has %d classes",
            given,
            vocabulary.num_classes,
        )
    if cfg.MODEL.VOCABULARY.EMBEDDINGS:
        return _given_embeddings(cfg, vocabulary)
    if not cfg.MODEL.CLIP.PRETRAINED:
        logger.warning(
            "MODEL.CLIP.PRETRAINED is empty: the text embeddings come from random weights"
        )
    return TextEmbeddings.load_or_build(
        vocabulary,
        clip=cfg.MODEL.CLIP.NAME,
        weights=cfg.MODEL.CLIP.PRETRAINED or None,
        templates=cfg.MODEL.VOCABULARY.TEMPLATES,
        cache_dir=cfg.MODEL.VOCABULARY.CACHE_DIR or None,
    )


def build_text_classifier(
    embeddings: TextEmbeddings,
    *,
    background_mode: str = "text",
    scale: float = 50.0,
    learn_scale: bool = True,
) -> TextClassifier:
    """Make a text classifier of a vocabulary's embeddings.

    Args:
        embeddings: The classes and their embeddings.
        background_mode: "text", "learned" or "zero".
        scale: Multiplier of the cosine.
        learn_scale: Whether that is a parameter.

    Returns:
        The classifier.
    """
    return TextClassifier(
        embeddings_KD=embeddings.embeddings_KD,
        base_mask_K=torch.tensor(embeddings.vocabulary.base_mask),
        background=embeddings.background_D,
        background_mode=background_mode,
        scale=scale,
        learn_scale=learn_scale,
    )


def build_sigmoid_classifier(
    embeddings: TextEmbeddings,
    *,
    prior: float = 0.01,
    scale: float = 50.0,
    learn_scale: bool = True,
) -> SigmoidTextClassifier:
    """Make the text classifier of a one-stage detector; for LazyConfig.

    Args:
        embeddings: The classes and their embeddings.
        prior: Probability at the start for a region whose cosine is 0.
        scale: Multiplier of the cosine.
        learn_scale: Whether that is a parameter.

    Returns:
        The classifier.
    """
    return SigmoidTextClassifier(
        embeddings_KD=embeddings.embeddings_KD,
        base_mask_K=torch.tensor(embeddings.vocabulary.base_mask),
        prior=prior,
        scale=scale,
        learn_scale=learn_scale,
    )


def _given_embeddings(cfg: CfgNode, vocabulary: Vocabulary) -> TextEmbeddings:
    """Read MODEL.VOCABULARY.EMBEDDINGS and hold it against the rest of the config."""
    path = Path(cfg.MODEL.VOCABULARY.EMBEDDINGS).expanduser()
    remedy = "rebuild the file, or empty MODEL.VOCABULARY.EMBEDDINGS to have them built"
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.VOCABULARY.EMBEDDINGS {path} does not exist; {remedy}")
    loaded = TextEmbeddings.load(path)
    clip = cfg.MODEL.CLIP
    if loaded.clip != clip.NAME:
        raise ValueError(
            f"text embeddings {path} come from {loaded.clip}, but MODEL.CLIP.NAME is {clip.NAME}; "
            f"{remedy}"
        )
    if loaded.vocabulary.names != vocabulary.names:
        shared = min(loaded.vocabulary.num_classes, vocabulary.num_classes)
        pairs = zip(loaded.vocabulary.names[:shared], vocabulary.names[:shared], strict=True)
        differing = [f"{got!r} instead of {name!r}" for got, name in pairs if got != name]
        raise ValueError(
            f"text embeddings {path} are of {loaded.vocabulary.num_classes} classes, the training "
            f"vocabulary has {vocabulary.num_classes}, and the names differ "
            f"({', '.join(differing[:3]) or 'in their number'}); {remedy}"
        )
    _warn_of_difference("MODEL.CLIP.PRETRAINED", clip.PRETRAINED, loaded.weights, path)
    templates = cfg.MODEL.VOCABULARY.TEMPLATES
    _warn_of_difference("MODEL.VOCABULARY.TEMPLATES", templates, loaded.templates, path)
    return loaded.with_vocabulary(vocabulary)


def _warn_of_difference(key: str, configured: str, stored: str, path: Path) -> None:
    # A file has another folder on another machine.
    if configured and stored and Path(configured).name != Path(stored).name:
        logger.warning("%s is %s, but %s was made with %s", key, configured, path, stored)
