"""Evaluators of semantic and panoptic data sets, made of their metadata.

Legend: H W pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from clipself_d2.evaluation.class_table import segment_classes
from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.panoptic import PanopticQualityEvaluator, true_segments
from clipself_d2.evaluation.semantic import SemanticEvaluator
from clipself_d2.parts.label_maps import read_label_map


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
        return _semantic_evaluator(dataset_name, output_dir)
    evaluators = panoptic_evaluators(dataset_name, output_dir)
    if Path(MetadataCatalog.get(dataset_name).get("json_file") or "").is_file():
        scorer = "pycocotools" if backend == "reference" else backend
        evaluators.append(
            CocoOVEvaluator(dataset_name, ("segm",), output_dir=output_dir, backend=scorer)
        )
    return DatasetEvaluators(evaluators)


def _semantic_evaluator(dataset_name: str, output_dir: str | None) -> SemanticEvaluator:
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
