"""Evaluation: the vocabulary of every test set, and the file of the results."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor, nn

from clipself_d2.evaluation.synonyms import ALL, SynonymEvaluator, replace_by_synonyms
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.json_file import write_json
from clipself_d2.parts.metadata import SEGMENT_TYPES, metadata_with_classes
from clipself_d2.parts.text_embeddings import (
    read_text_embeddings,
    scored_vocabulary,
    semantic_vocabulary,
    training_vocabulary,
)
from clipself_d2.parts.words import shortened
from clipself_d2.runs.checkpointer import changed
from clipself_d2.vocabulary import Vocabulary, use_vocabulary

logger = logging.getLogger(__name__)

Protocol = dict[str, object]

# Results by data set, task and metric, in OUTPUT_DIR; and by data set, the protocol.
RESULTS_FILE = "results.json"
# Limit an image of LVIS's standard protocol.
LVIS_DETECTIONS = 300
# Types of data sets that are scored otherwise than by detections.
REFERRING, REGION_CLASSIFICATION = "refer", "region_classification"
SEMANTIC = "sem_seg"


def test_vocabulary(cfg: CfgNode, dataset_name: str) -> tuple[Vocabulary, Protocol]:
    """Read the classes of a test set as they are prompted, and what to report of the prompts.

    TEST.SYNONYMS prompts the classes by synonyms, TEST.SYNONYM_MODE "all" by their names first. A
    ValueError says that the metadata has none.
    """
    metadata = metadata_with_classes(dataset_name)
    report: Protocol = {
        "clip": cfg.MODEL.CLIP.NAME,
        "prompts": cfg.MODEL.VOCABULARY.TEMPLATES,
        "names": "own",
    }
    stuff, kind = metadata.get("stuff_classes"), metadata.get("evaluator_type")
    if kind in SEGMENT_TYPES:
        vocabulary = scored_vocabulary(dataset_name, training_vocabulary(cfg, semantic=True))
    elif kind == SEMANTIC:
        vocabulary = semantic_vocabulary(dataset_name, "DATASETS.TEST")
    elif kind == REGION_CLASSIFICATION and stuff:
        vocabulary = Vocabulary.from_names([*metadata.thing_classes, *stuff])
    else:
        vocabulary = Vocabulary.from_metadata(metadata)
    if not cfg.TEST.SYNONYMS:
        return vocabulary, report
    synonyms = metadata.get("class_synonyms")
    if not synonyms:
        raise ValueError(
            f"TEST.SYNONYMS needs class_synonyms in the metadata of {dataset_name}: for every "
            "class a list of other names; set TEST.SYNONYMS to False for this data set"
        )
    mode = cfg.TEST.SYNONYM_MODE
    other, renamed = replace_by_synonyms(vocabulary, synonyms, "mean" if mode == ALL else mode)
    report |= {
        "names": "own and synonyms" if mode == ALL else "synonyms",
        "names_replaced": renamed.replaced,
        "synonyms": mode,
        "collisions": [f"{word} for {name}" for name, word in renamed.collisions],
    }
    return vocabulary if mode == ALL else other, report


def vocabulary_of(
    cfg: CfgNode, model: nn.Module, dataset_name: str
) -> AbstractContextManager[object]:
    """Switch a detector to the classes of a data set for the time of a with block.

    One without a text classifier is left alone.
    """
    if not reads_text(model):
        return nullcontext()
    vocabulary, _ = test_vocabulary(cfg, dataset_name)
    return use_vocabulary(model, read_text_embeddings(cfg, vocabulary, same_names=False))


@contextmanager
def evaluator_of(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    build: Callable[[CfgNode, str], DatasetEvaluator | None],
) -> Iterator[DatasetEvaluator | None]:
    """Make the evaluator of a data set, of its names and of all its synonyms where that is asked.

    TEST.SYNONYM_MODE "all" scores every index of synonyms beside the names, from one pass of the
    backbone; files of an index are written below OUTPUT_DIR/synonyms.
    """
    if not cfg.TEST.SYNONYMS or cfg.TEST.SYNONYM_MODE != ALL:
        yield build(cfg, dataset_name)
        return
    # With the mode "mean" the vocabulary holds all synonyms of a class, its name aside.
    every = changed(cfg, "TEST.SYNONYM_MODE", "mean")
    most = max(1 + len(words) for words in test_vocabulary(every, dataset_name)[0].synonyms or [()])
    configs, tables = [], []
    for index in range(most):
        one = changed(cfg, "TEST.SYNONYM_MODE", f"index:{index}")
        one = changed(one, "OUTPUT_DIR", str(Path(cfg.OUTPUT_DIR) / "synonyms" / str(index)))
        words = test_vocabulary(one, dataset_name)[0]
        configs.append(one)
        tables.append(read_text_embeddings(one, words, same_names=False))

    def predict(inputs: Sequence[Any], index: int) -> Sequence[Any]:
        with use_vocabulary(model, tables[index]):
            return model(inputs)

    own = build(changed(cfg, "TEST.SYNONYMS", False), dataset_name)
    renamed = [build(one, dataset_name) for one in configs]
    same = MetadataCatalog.get(dataset_name).get("evaluator_type") == REGION_CLASSIFICATION
    with _remembered_features(model):
        yield SynonymEvaluator(own=own, renamed=renamed, predict=None if same else predict)


@contextmanager
def _remembered_features(model: nn.Module) -> Iterator[None]:
    """Let the backbone of a model answer at once where it is asked the same twice in a row."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        yield
        return
    forward = backbone.forward
    last: list[Any] = []

    def remembered(pixels: Tensor) -> Any:
        if not last or not torch.equal(last[0], pixels):
            last[:] = [pixels, forward(pixels)]
        return last[1]

    backbone.forward = remembered
    try:
        yield
    finally:
        del backbone.forward


def reads_text(model: nn.Module) -> bool:
    """Tell whether the classes of a model are text."""
    return any(isinstance(module, TextClassifier) for module in model.modules())


def protocol_of(
    cfg: CfgNode, model: nn.Module, dataset_name: str, evaluator: DatasetEvaluator | None
) -> Protocol:
    """Tell under which rules a data set was scored: the entry "protocol" of the results' file."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    protocol: Protocol = {"evaluator": kind, **own_protocol(evaluator)}
    if kind == REFERRING:
        protocol["mask_threshold"] = model.mask_threshold
    elif kind not in (REGION_CLASSIFICATION, SEMANTIC, *SEGMENT_TYPES):
        protocol["model_detections_per_image"] = cfg.TEST.DETECTIONS_PER_IMAGE
    if kind == REGION_CLASSIFICATION or reads_text(model):
        report = test_vocabulary(cfg, dataset_name)[1]
        protocol |= report
        if "synonyms" in report:
            replaced = report["names_replaced"]
            logger.info("%d classes of %s are prompted by a synonym", replaced, dataset_name)
        collisions = report.get("collisions")
        if isinstance(collisions, list) and collisions:
            names = shortened(collisions)
            logger.warning("synonyms that are names of other classes are not used: %s", names)
    return protocol


def own_protocol(evaluator: object) -> Protocol:
    """Ask an evaluator for its rules, which those of this project have."""
    return dict(evaluator.protocol()) if hasattr(evaluator, "protocol") else {}


def write_results(
    output_dir: str, results: Mapping[str, Mapping], protocols: Mapping[str, Protocol]
) -> None:
    """Write the results and their protocols into OUTPUT_DIR, in the main process."""
    if not comm.is_main_process():
        return
    content = {name: {**scores, "protocol": protocols[name]} for name, scores in results.items()}
    path = Path(output_dir) / RESULTS_FILE
    write_json(path, content, indent=1)
    logger.info("Results in %s", path)


def warn_of_limit(cfg: CfgNode) -> None:
    """Warn where Fixed AP, which knows no limit an image, is asked of a model with one."""
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if cfg.TEST.FIXED_AP and 0 <= limit <= LVIS_DETECTIONS:
        logger.warning(
            "TEST.FIXED_AP counts detections without a limit an image, but the model gives "
            "%d at most; raise TEST.DETECTIONS_PER_IMAGE, for example to 1000",
            limit,
        )
