"""Class names and their text embeddings: the one reader of MODEL.VOCABULARY."""

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.layers.segment_classifier import SegmentTextClassifier
from clipself_d2.layers.text_classifier import SigmoidTextClassifier, TextClassifier
from clipself_d2.parts.metadata import SEGMENT_TYPES, metadata_with_classes
from clipself_d2.parts.words import did_you_mean
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.embeddings import BACKGROUND
from clipself_d2.vocabulary.templates import clean_name, template_name

logger = logging.getLogger(__name__)

_DETECTRON2_NUM_CLASSES = 80
# Groups of names that a warning shows.
_MOST_GROUPS = 5
_REMEDY = "rebuild the file, or empty MODEL.VOCABULARY.EMBEDDINGS to have them built"


def dataset_vocabulary(name: str, key: str = "MODEL.VOCABULARY.DATASET") -> Vocabulary:
    """Read the classes of a registered data set; a ValueError tells to check ``key``."""
    if name not in DatasetCatalog.list() and name not in MetadataCatalog.list():
        near = did_you_mean(name, DatasetCatalog.list())
        raise ValueError(f"data set {name!r} is not registered; check {key}{near}")
    metadata = metadata_with_classes(name)
    if metadata.get("evaluator_type") in SEGMENT_TYPES:
        return Vocabulary.with_stuff(metadata)
    if metadata.get("thing_classes") is None:
        raise ValueError(
            f"the metadata of {name} has no thing_classes to take a vocabulary from; name a "
            "detection data set in MODEL.VOCABULARY.DATASET"
        )
    return Vocabulary.from_metadata(metadata)


def scored_vocabulary(name: str, training: Vocabulary | None = None) -> Vocabulary:
    """Read the classes of a test set, and which of them are novel.

    Where it is one of segments and says nothing of novel classes, those without a word in common
    with ``training`` are novel; None: nothing is.
    """
    vocabulary, metadata = dataset_vocabulary(name, "DATASETS.TEST"), MetadataCatalog.get(name)
    says_nothing = not metadata.get("novel_classes")
    if metadata.get("evaluator_type") in SEGMENT_TYPES and says_nothing and training is not None:
        return vocabulary.novel_to(training)
    return vocabulary


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
    vocabulary = dataset_vocabulary(name)
    warn_of_doubtful_names(vocabulary)
    return TextEmbeddings.load_or_build(
        vocabulary, clip=clip, weights=weights, templates=templates, cache_dir=cache_dir
    )


def semantic_vocabulary(name: str, key: str = "MODEL.VOCABULARY.DATASET") -> Vocabulary:
    """Read the classes of the label maps of a registered data set.

    Of the types of ``SEGMENT_TYPES`` things and stuff; of Detectron2's sets of semantic maps
    ``stuff_classes``, things included, of "a, b" the first name. ``novel_classes`` among them have
    no labels in training.
    """
    if name not in DatasetCatalog.list() and name not in MetadataCatalog.list():
        raise ValueError(f"data set {name!r} is not registered; check {key}")
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") in SEGMENT_TYPES:
        return dataset_vocabulary(name, key)
    classes = metadata.get("stuff_classes")
    if not classes:
        raise ValueError(
            f"the metadata of {name} has no stuff_classes, the classes of its label maps; name a "
            f"semantic data set in {key}"
        )
    # ADE20K and COCO-Stuff list synonyms in one text.
    names = [entry.split(", ")[0] for entry in classes]
    novel = set(metadata.get("novel_classes") or ())
    return Vocabulary.from_names(names, novel=[entry for entry in names if entry in novel])


def training_vocabulary(cfg: CfgNode, *, semantic: bool = False) -> Vocabulary:
    """Read the classes of MODEL.VOCABULARY.DATASET, or of the first training set.

    ``semantic`` ones are those of maps instead of boxes.
    """
    given = cfg.MODEL.VOCABULARY.DATASET
    name = given or next(iter(cfg.DATASETS.TRAIN), "")
    if not name:
        raise ValueError("there are no classes; set MODEL.VOCABULARY.DATASET or DATASETS.TRAIN")
    read = semantic_vocabulary if semantic else dataset_vocabulary
    return read(name, "MODEL.VOCABULARY.DATASET" if given else "DATASETS.TRAIN")


def training_embeddings(cfg: CfgNode) -> TextEmbeddings:
    """Load or build the text embeddings of ``training_vocabulary``, as ``read_text_embeddings``."""
    vocabulary = training_vocabulary(cfg)
    given = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if given not in (_DETECTRON2_NUM_CLASSES, vocabulary.num_classes):
        words = "MODEL.ROI_HEADS.NUM_CLASSES %d is ignored: the vocabulary has %d classes"
        logger.warning(words, given, vocabulary.num_classes)
    return read_text_embeddings(cfg, vocabulary)


def read_text_embeddings(
    cfg: CfgNode, vocabulary: Vocabulary, *, same_names: bool = True
) -> TextEmbeddings:
    """Load or build the text embeddings of exactly these classes by the config's CLIP.

    They are those of MODEL.VOCABULARY.EMBEDDINGS, of the cache, or built. ``same_names`` refuses a
    file of other classes, as in training; tests on other classes have theirs built instead. A
    FileNotFoundError or ValueError says that the file is missing, damaged, or of another CLIP; the
    width is checked where it meets a tower's.
    """
    options, clip = cfg.MODEL.VOCABULARY, cfg.MODEL.CLIP
    warn_of_doubtful_names(vocabulary)
    if options.EMBEDDINGS:
        given = _given_embeddings(cfg, Path(options.EMBEDDINGS).expanduser())
        if given.vocabulary.names == vocabulary.names:
            return given.with_vocabulary(vocabulary)
        if same_names:
            raise ValueError(_difference(given.vocabulary, vocabulary, options.EMBEDDINGS))
        logger.info(
            "MODEL.VOCABULARY.EMBEDDINGS %s has other classes than the %d to be scored; theirs are "
            "built",
            options.EMBEDDINGS,
            vocabulary.num_classes,
        )
    if not clip.PRETRAINED:
        logger.warning(
            "MODEL.CLIP.PRETRAINED is empty: the text embeddings come from random weights"
        )
    return TextEmbeddings.load_or_build(
        vocabulary,
        clip=clip.NAME,
        weights=clip.PRETRAINED or None,
        templates=_template_name(options.TEMPLATES),
        cache_dir=options.CACHE_DIR or None,
        device=cfg.MODEL.DEVICE,
    )


def warn_of_doubtful_names(vocabulary: Vocabulary) -> None:
    """Warn of classes that text cannot tell from one another or from the background."""
    alike = vocabulary.look_alikes
    if alike:
        shown = "; ".join(" = ".join(map(repr, group)) for group in alike[:_MOST_GROUPS])
        words = "%d groups of classes read alike, so that only the first of a group is found: %s"
        logger.warning(words, len(alike), shown)
    empty = [name for name in vocabulary.names if clean_name(name) == BACKGROUND]
    if empty:
        words = "the class %r reads as the background of detectors; leave it out of the classes"
        logger.warning(words, empty[0])


def build_text_classifier(
    embeddings: TextEmbeddings,
    *,
    background_mode: str = "text",
    scale: float = 50.0,
    learn_scale: bool = True,
) -> TextClassifier:
    """Make a ``TextClassifier`` of a vocabulary's embeddings."""
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
    """Make the ``SigmoidTextClassifier`` of a one-stage detector; for LazyConfig."""
    return SigmoidTextClassifier(
        embeddings_KD=embeddings.embeddings_KD,
        base_mask_K=torch.tensor(embeddings.vocabulary.base_mask),
        prior=prior,
        scale=scale,
        learn_scale=learn_scale,
    )


def build_segment_classifier(
    embeddings: TextEmbeddings, *, scale: float = 100.0
) -> SegmentTextClassifier:
    """Make the text classifier of masks, things and stuff, whose scores are the best word's."""
    vocabulary = embeddings.vocabulary
    words_WD, word_class_W = embeddings.by_word()
    things = vocabulary.thing_mask or (True,) * vocabulary.num_classes
    return SegmentTextClassifier(
        embeddings_KD=embeddings.embeddings_KD,
        base_mask_K=torch.tensor(vocabulary.base_mask),
        background=embeddings.background_D,
        words_WD=words_WD,
        word_class_W=word_class_W,
        thing_mask_K=torch.tensor(things),
        scale=scale,
    )


def _given_embeddings(cfg: CfgNode, path: Path) -> TextEmbeddings:
    """Read MODEL.VOCABULARY.EMBEDDINGS and hold it against MODEL.CLIP and the prompts."""
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.VOCABULARY.EMBEDDINGS {path} does not exist; {_REMEDY}")
    try:
        loaded = TextEmbeddings.load(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; {_REMEDY}; a file of another project is converted by "
            "tools/build_text_embeddings.py --from"
        ) from error
    clip = cfg.MODEL.CLIP
    if loaded.clip != clip.NAME:
        raise ValueError(
            f"text embeddings {path} come from {loaded.clip}, but MODEL.CLIP.NAME is {clip.NAME}; "
            f"{_REMEDY}"
        )
    _warn_of_difference("MODEL.CLIP.PRETRAINED", clip.PRETRAINED, loaded.weights, path)
    templates = _template_name(cfg.MODEL.VOCABULARY.TEMPLATES)
    _warn_of_difference("MODEL.VOCABULARY.TEMPLATES", templates, loaded.templates, path)
    return loaded


def _template_name(name: str) -> str:
    try:
        return template_name(name)
    except ValueError as error:
        raise ValueError(f"MODEL.VOCABULARY.TEMPLATES: {error}") from error


def _difference(stored: Vocabulary, wanted: Vocabulary, file: str) -> str:
    pairs = zip(stored.names, wanted.names, strict=False)
    differing = [f"{got!r} instead of {name!r}" for got, name in pairs if got != name]
    shown = ", ".join(differing[:3]) or "in their number"
    return (
        f"text embeddings {file} are of {stored.num_classes} classes, the training vocabulary has "
        f"{wanted.num_classes}, and the names differ ({shown}); {_REMEDY}"
    )


def _warn_of_difference(key: str, configured: str, stored: str, path: Path) -> None:
    # A file has another folder on another machine.
    if configured and stored and Path(configured).name != Path(stored).name:
        logger.warning("%s is %s, but %s was made with %s", key, configured, path, stored)
