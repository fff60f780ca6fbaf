"""Evaluation: every test data set is scored with a vocabulary of its own."""

import json
import logging
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from clipself_d2.clip import load_clip
from clipself_d2.data.build import build_region_test_loader_from_cfg
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

logger = logging.getLogger(__name__)

# Results by data set, task and metric, in OUTPUT_DIR.
RESULTS_FILE = "results.json"


def embed_vocabulary(cfg: CfgNode, vocabulary: Vocabulary) -> TextEmbeddings:
    """Embed class names with the config's CLIP and prompts, from the cache where it has them.

    Args:
        cfg: Config with MODEL.CLIP and MODEL.VOCABULARY.
        vocabulary: The classes.

    Returns:
        Their text embeddings.
    """
    return TextEmbeddings.load_or_build(
        vocabulary,
        clip=cfg.MODEL.CLIP.NAME,
        weights=cfg.MODEL.CLIP.PRETRAINED or None,
        templates=cfg.MODEL.VOCABULARY.TEMPLATES,
        cache_dir=cfg.MODEL.VOCABULARY.CACHE_DIR or None,
    )


def warn_unseen_words(cfg: CfgNode, vocabulary: Vocabulary) -> list[str]:
    """Warn of words that the embedded CLIP never read.

    Args:
        cfg: Config with MODEL.CLIP.
        vocabulary: The classes typed by the user.

    Returns:
        The unseen words; always empty for CLIPs trained on web text.
    """
    clip = load_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED or None)
    unseen = clip.text.unseen_words(vocabulary.names)
    if unseen:
        logger.warning(
            "%s never read the words %s in training; expect noise for them",
            cfg.MODEL.CLIP.NAME,
            ", ".join(unseen),
        )
    return unseen


def vocabulary_of(
    cfg: CfgNode, model: nn.Module, dataset_name: str
) -> AbstractContextManager[object]:
    """Switch a detector to the classes of a data set for the time of a with block.

    Args:
        cfg: The whole config.
        model: The detector; one without a text classifier is left alone.
        dataset_name: Registered name.

    Returns:
        A context manager.
    """
    if not any(isinstance(module, TextClassifier) for module in model.modules()):
        return nullcontext()
    vocabulary = Vocabulary.from_metadata(MetadataCatalog.get(dataset_name))
    return use_vocabulary(model, embed_vocabulary(cfg, vocabulary))


def evaluate_detector(cfg: CfgNode, model: nn.Module) -> OrderedDict:
    """Score a detector on every data set of DATASETS.TEST.

    Args:
        cfg: The whole config.
        model: The detector.

    Returns:
        Results by data set, by task, by metric; of a single data set as Detectron2 does, without
        the data set's name.
    """
    results: OrderedDict = OrderedDict()
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(cfg, name)
        output_dir = Path(cfg.OUTPUT_DIR) / "inference" / name
        evaluator = build_evaluator(name, str(output_dir), backend=cfg.TEST.BACKEND)
        with vocabulary_of(cfg, model, name):
            scores = inference_on_dataset(model, loader, evaluator)
        results[name] = scores
        if comm.is_main_process():
            logger.info("Results on %s:", name)
            print_csv_format(scores)
    return _finish(cfg, results)


def evaluate_regions(cfg: CfgNode, distiller: Any) -> OrderedDict:
    """Score a distiller's region features on every data set of DATASETS.TEST.

    Args:
        cfg: The whole config.
        distiller: A META_ARCHITECTURE of distill/, whose evaluation mode embeds regions.

    Returns:
        As ``evaluate_detector``; metrics of ``RegionClassificationEvaluator``.
    """
    results: OrderedDict = OrderedDict()
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") != "region_classification":
            raise ValueError(
                f"DATASETS.TEST holds {name}, whose evaluator_type is "
                f"{metadata.get('evaluator_type')!r}; region features are scored on panoptic "
                "ground truth, for example emoji_panoptic_val"
            )
        names = [*metadata.thing_classes, *metadata.stuff_classes]
        embeddings = embed_vocabulary(cfg, Vocabulary.from_names(names))
        evaluator = build_evaluator(
            name, cfg.OUTPUT_DIR, text_embeddings=embeddings.embeddings_KD.to(torch.float32)
        )
        towers = getattr(distiller, "module", distiller)
        loader = build_region_test_loader_from_cfg(
            cfg,
            name,
            crop_size=towers.teacher.image_size,
            patch_size=towers.student.patch_size,
        )
        results[name] = inference_on_dataset(distiller, loader, evaluator)
        if comm.is_main_process():
            print_csv_format(results[name])
    return _finish(cfg, results)


def _finish(cfg: CfgNode, results: OrderedDict) -> OrderedDict:
    if comm.is_main_process():
        path = Path(cfg.OUTPUT_DIR) / RESULTS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1), encoding="utf-8")
        logger.info("Results in %s", path)
    return results if len(results) != 1 else next(iter(results.values()))
