"""Evaluation: every test data set is scored with a vocabulary of its own."""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from clipself_d2.data.build import build_region_test_loader_from_cfg
from clipself_d2.data.datasets.custom import folder_name
from clipself_d2.data.referring_loader import (
    build_referring_test_loader_from_cfg,
    has_references,
)
from clipself_d2.detection.tta import with_test_time_augmentation
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.text_embeddings import read_text_embeddings
from clipself_d2.vocabulary import Vocabulary, use_vocabulary

logger = logging.getLogger(__name__)

Protocol = dict[str, object]

# Results by data set, task and metric, in OUTPUT_DIR; and by data set, the protocol.
RESULTS_FILE = "results.json"
# Limit an image of LVIS's standard protocol.
LVIS_DETECTIONS = 300


def replace_by_synonyms(
    vocabulary: Vocabulary, synonyms: Sequence[Sequence[str]]
) -> tuple[Vocabulary, int]:
    """Name classes by a synonym; their order and the base classes stay.

    Args:
        vocabulary: K classes.
        synonyms: Other names of the first classes, in order. A class takes the first of its own
            that is nobody's name; without one it keeps its name.

    Returns:
        The vocabulary under the other names, and how many were replaced.

    Raises:
        ValueError: If there are more lists of synonyms than classes.
    """
    if len(synonyms) > vocabulary.num_classes:
        raise ValueError(
            f"class_synonyms has {len(synonyms)} entries for {vocabulary.num_classes} classes; "
            "give a list of names, which may be empty, for every class"
        )
    # Metadata may list the first classes only, and carry blanks around its words.
    words = [tuple(word.strip() for word in entry if word.strip()) for entry in synonyms]
    words += [()] * (vocabulary.num_classes - len(words))
    other = replace(vocabulary, synonyms=tuple(words)).swap_synonyms()
    pairs = zip(vocabulary.names, other.names, strict=True)
    return other, sum(old != new for old, new in pairs)


def _test_vocabulary(cfg: CfgNode, dataset_name: str) -> tuple[Vocabulary, dict[str, object]]:
    """Return the things of a data set as they are prompted, and what to report of the prompts."""
    metadata = MetadataCatalog.get(dataset_name)
    report: dict[str, object] = {
        "clip": cfg.MODEL.CLIP.NAME,
        "prompts": cfg.MODEL.VOCABULARY.TEMPLATES,
        "names": "synonyms" if cfg.TEST.SYNONYMS else "own",
    }
    vocabulary = Vocabulary.from_metadata(metadata)
    stuff = metadata.get("stuff_classes")
    if metadata.get("evaluator_type") == "region_classification" and stuff:
        vocabulary = Vocabulary.from_names([*metadata.thing_classes, *stuff])
    if not cfg.TEST.SYNONYMS:
        return vocabulary, report
    synonyms = metadata.get("class_synonyms")
    if not synonyms:
        raise ValueError(
            f"TEST.SYNONYMS needs class_synonyms in the metadata of {dataset_name}: for every "
            "class a list of other names; set TEST.SYNONYMS to False for this data set"
        )
    vocabulary, replaced = replace_by_synonyms(vocabulary, synonyms)
    logger.info(
        "%d of %d classes of %s are prompted by a synonym",
        replaced,
        vocabulary.num_classes,
        dataset_name,
    )
    return vocabulary, report | {"names_replaced": replaced}


def vocabulary_of(
    cfg: CfgNode, model: nn.Module, dataset_name: str
) -> AbstractContextManager[object]:
    """Switch a detector to the classes of a data set for the time of a with block.

    Args:
        cfg: The whole config; TEST.SYNONYMS prompts the classes by synonyms.
        model: The detector; one without a text classifier is left alone.
        dataset_name: Registered name.

    Returns:
        A context manager.
    """
    if not _reads_text(model):
        return nullcontext()
    vocabulary, _ = _test_vocabulary(cfg, dataset_name)
    return use_vocabulary(model, read_text_embeddings(cfg, vocabulary, same_names=False))


def _reads_text(model: nn.Module) -> bool:
    return any(isinstance(module, TextClassifier) for module in model.modules())


def evaluate_detector(cfg: CfgNode, model: nn.Module) -> OrderedDict:
    """Score a detector on every data set of DATASETS.TEST.

    Args:
        cfg: The whole config.
        model: The detector.

    Returns:
        Results by data set, by task, by metric; of a single data set as Detectron2 does, without
        the data set's name. The file in OUTPUT_DIR adds the protocol of every data set.
    """
    results: OrderedDict = OrderedDict()
    protocols: dict[str, Protocol] = {}
    model = with_test_time_augmentation(cfg, model)
    _warn_of_limit(cfg)
    for name in cfg.DATASETS.TEST:
        loader = _test_loader(cfg, name)
        output_dir = Path(cfg.OUTPUT_DIR) / "inference" / folder_name(name)
        evaluator = build_evaluator(
            name, str(output_dir), backend=cfg.TEST.BACKEND, fixed_ap=cfg.TEST.FIXED_AP
        )
        with vocabulary_of(cfg, model, name):
            scores = inference_on_dataset(model, loader, evaluator)
        results[name] = scores
        protocols[name] = {
            "evaluator": MetadataCatalog.get(name).get("evaluator_type"),
            **(evaluator.protocol() if hasattr(evaluator, "protocol") else {}),
            **_model_protocol(cfg, name),
            **(_test_vocabulary(cfg, name)[1] if _reads_text(model) else {}),
        }
        if comm.is_main_process():
            logger.info("Results on %s:", name)
            print_csv_format(scores)
    return _finish(cfg, results, protocols)


def _test_loader(cfg: CfgNode, name: str) -> DataLoader:
    if has_references([name]):
        return build_referring_test_loader_from_cfg(cfg, name)
    return build_detection_test_loader(cfg, name)


def _warn_of_limit(cfg: CfgNode) -> None:
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if cfg.TEST.FIXED_AP and 0 <= limit <= LVIS_DETECTIONS:
        logger.warning(
            "TEST.FIXED_AP counts detections without a limit an image, but the model gives "
            "%d at most; raise TEST.DETECTIONS_PER_IMAGE, for example to 1000",
            limit,
        )


def evaluate_regions(cfg: CfgNode, distiller: Any) -> OrderedDict:
    """Score a distiller's region features on every data set of DATASETS.TEST.

    Args:
        cfg: The whole config.
        distiller: A META_ARCHITECTURE of distill/, whose evaluation mode embeds regions.

    Returns:
        As ``evaluate_detector``; metrics of ``RegionClassificationEvaluator``.
    """
    results: OrderedDict = OrderedDict()
    protocols: dict[str, Protocol] = {}
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type")
        if kind != "region_classification":
            raise ValueError(
                f"DATASETS.TEST holds {name}, whose evaluator_type is "
                f"{kind!r}; region features are scored on panoptic "
                "ground truth, for example emoji_panoptic_val"
            )
        vocabulary, prompting = _test_vocabulary(cfg, name)
        embeddings = read_text_embeddings(cfg, vocabulary, same_names=False)
        evaluator = build_evaluator(
            name,
            cfg.OUTPUT_DIR,
            text_embeddings=embeddings.embeddings_KD.to(torch.float32),
        )
        towers = getattr(distiller, "module", distiller)
        loader = build_region_test_loader_from_cfg(
            cfg,
            name,
            crop_size=towers.teacher.image_size,
            patch_size=towers.student.patch_size,
        )
        results[name] = inference_on_dataset(distiller, loader, evaluator)
        protocols[name] = {"evaluator": kind, **evaluator.protocol(), **prompting}
        if comm.is_main_process():
            print_csv_format(results[name])
    return _finish(cfg, results, protocols)


def _model_protocol(cfg: CfgNode, name: str) -> dict[str, object]:
    if MetadataCatalog.get(name).get("evaluator_type") == "refer":
        return {"mask_threshold": cfg.MODEL.CRIS.MASK_THRESHOLD}
    return {"model_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE}


def _finish(cfg: CfgNode, results: OrderedDict, protocols: Mapping[str, Protocol]) -> OrderedDict:
    if comm.is_main_process():
        content = {
            name: {**scores, "protocol": protocols[name]} for name, scores in results.items()
        }
        path = Path(cfg.OUTPUT_DIR) / RESULTS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        logger.info("Results in %s", path)
    return results if len(results) != 1 else next(iter(results.values()))
