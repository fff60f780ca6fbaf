"""The evaluator that fits a data set, made of its metadata.

Legend: H W pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from torch import Tensor

from clipself_d2.evaluation.class_table import segment_classes
from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.lvis_ov import LVISOVEvaluator
from clipself_d2.evaluation.panoptic import PanopticQualityEvaluator, true_segments
from clipself_d2.evaluation.referring import ReferringEvaluator
from clipself_d2.evaluation.region_classification import RegionClassificationEvaluator
from clipself_d2.evaluation.semantic import SemanticEvaluator
from clipself_d2.parts.label_maps import read_label_map
from clipself_d2.parts.metadata import SEGMENT_TYPES

logger = logging.getLogger(__name__)

_DETECTRON2_TYPES = ("coco", "lvis", "sem_seg", "coco_panoptic_seg")
_OWN_TYPES = ("coco_ov", "lvis_ov", "region_classification", "refer", *SEGMENT_TYPES)


def build_evaluator(
    dataset_name: str,
    output_dir: str | None,
    *,
    backend: str = "hotcoco",
    text_embeddings: Tensor | None = None,
    tasks: Sequence[str] | None = None,
    fixed_ap: bool = False,
) -> DatasetEvaluator:
    """Build the evaluator that the metadata's ``evaluator_type`` asks for.

    Args:
        dataset_name: Registered name.
        output_dir: Folder for the predictions; None writes none.
        backend: Scorer of ``coco_ov`` and ``lvis_ov``: ``hotcoco``, or ``reference`` for
            ``pycocotools`` and ``lvis``, which can also be named themselves, or of the first
            ``faster_coco_eval``. Detectron2's own
            types ``lvis`` and ``coco`` are scored as ``lvis_ov`` and ``coco_ov``; ``coco`` with
            ``keypoint_names`` by Detectron2's evaluator, as are ``sem_seg`` and
            ``coco_panoptic_seg`` (boxes, masks and the semantic map).
        text_embeddings: (K, D) unit class embeddings for ``region_classification``, in the order
            of the metadata's ``thing_classes`` and then ``stuff_classes``.
        tasks: Any of ``bbox`` and ``segm``; None scores what the model predicts.
        fixed_ap: Whether ``lvis_ov`` adds Fixed AP; of no meaning for the others.

    Raises:
        FileNotFoundError: If the annotation file does not exist.
        ValueError: If the type is unknown, or options and metadata do not fit it.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind in SEGMENT_TYPES:
        return build_segment_evaluator(dataset_name, output_dir, backend=backend)
    if kind == "coco_ov" or (kind == "coco" and not metadata.get("keypoint_names")):
        scorer = "pycocotools" if backend == "reference" else backend
        return CocoOVEvaluator(dataset_name, tasks, output_dir=output_dir, backend=scorer)
    if kind in ("lvis_ov", "lvis"):
        scorer = "lvis" if backend == "reference" else backend
        return LVISOVEvaluator(
            dataset_name, tasks, output_dir=output_dir, backend=scorer, fixed_ap=fixed_ap
        )
    if kind == "region_classification":
        if tasks is not None:
            logger.warning("tasks has no meaning for %s, a region_classification set", dataset_name)
        return _region_evaluator(dataset_name, text_embeddings)
    if kind == "refer":
        return ReferringEvaluator()
    if kind == "sem_seg":
        return _semantic_evaluator(dataset_name, output_dir)
    if kind in ("coco", "coco_panoptic_seg"):
        boxes = COCOEvaluator(dataset_name, tasks, output_dir=output_dir, use_fast_impl=False)
        if kind == "coco":
            return boxes
        return DatasetEvaluators([_semantic_evaluator(dataset_name, output_dir), boxes])
    raise ValueError(
        f"evaluator_type of {dataset_name} is {kind!r}, expected one of "
        f"{', '.join((*_OWN_TYPES, *_DETECTRON2_TYPES))}; set it in the data set's metadata"
    )


def _semantic_evaluator(dataset_name: str, output_dir: str | None) -> SemSegEvaluator:
    # Detectron2's own reader asks NumPy 2 for what that refuses.
    return SemSegEvaluator(dataset_name, output_dir=output_dir, sem_seg_loading_fn=read_label_map)


def _region_evaluator(dataset_name: str, text: Tensor | None) -> RegionClassificationEvaluator:
    if text is None:
        raise ValueError(f"region classification of {dataset_name} needs text_embeddings (K, D)")
    classes = segment_classes(MetadataCatalog.get(dataset_name))
    return RegionClassificationEvaluator(text_embeddings_KD=text, **classes)


def panoptic_evaluators(dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """Make the evaluators of panoptic quality and of the semantic map of an ``ov_panoptic`` set."""
    # The records first: reading them may bring the metadata's classes.
    records, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    tables = {"records": records, **segment_classes(metadata)}
    semantic = SemanticEvaluator(
        read_truth=panoptic_labels,
        ignore_label=metadata.ignore_label,
        output_dir=output_dir,
        **tables,
    )
    return [PanopticQualityEvaluator(**tables), semantic]


def build_segment_evaluator(
    dataset_name: str, output_dir: str | None, *, backend: str = "hotcoco"
) -> DatasetEvaluator:
    """Build the evaluator of a data set of one of ``SEGMENT_TYPES``.

    Of semantic sets mean intersection over union; of panoptic sets panoptic quality too, and
    average precision of the things' masks where the file of instances is known.
    """
    if MetadataCatalog.get(dataset_name).evaluator_type == "ov_sem_seg":
        return _open_semantic_evaluator(dataset_name, output_dir)
    evaluators = panoptic_evaluators(dataset_name, output_dir)
    if Path(MetadataCatalog.get(dataset_name).get("json_file") or "").is_file():
        scorer = "pycocotools" if backend == "reference" else backend
        evaluators.append(
            CocoOVEvaluator(dataset_name, ("segm",), output_dir=output_dir, backend=scorer)
        )
    return DatasetEvaluators(evaluators)


def _open_semantic_evaluator(dataset_name: str, output_dir: str | None) -> SemanticEvaluator:
    records, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    names: list[str] = []
    if (fold := metadata.get("fold_from")) is not None:
        names = [*metadata.thing_classes, *metadata.stuff_classes][:fold]
        names.append("background")
    return SemanticEvaluator(
        records=records,
        read_truth=lambda record: read_label_map(record["sem_seg_file_name"]),
        ignore_label=metadata.ignore_label,
        fold_from=fold,
        output_dir=output_dir,
        **segment_classes(metadata, names),
    )


def panoptic_labels(record: Mapping[str, Any], ignore_label: int = 255) -> np.ndarray:
    """Class labels of a picture's panoptic truth: (H, W) int64; void and crowds are ignored."""
    ids = true_segments(record)
    labels = np.full(ids.shape, ignore_label, np.int64)
    for segment in record["segments_info"]:
        if not segment.get("iscrowd"):
            labels[ids == segment["id"]] = segment["category_id"]
    return labels
