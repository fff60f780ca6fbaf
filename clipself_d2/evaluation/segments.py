"""Evaluators of semantic and panoptic data sets, made of their metadata.

Legend: H W pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.panoptic import PanopticQualityEvaluator
from clipself_d2.evaluation.semantic import SemanticEvaluator
from clipself_d2.parts.label_maps import (
    check_segments,
    read_label_map,
    read_segment_colours,
    segment_ids,
)


def panoptic_evaluators(dataset_name: str, output_dir: str | None) -> list[DatasetEvaluator]:
    """Make the evaluators of panoptic quality and of the semantic map of an ``ov_panoptic`` set."""
    records, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    things, stuff = list(metadata.thing_classes), list(metadata.stuff_classes)
    novel = set(metadata.get("novel_classes") or ())
    tables: dict[str, Any] = {
        "records": records,
        "class_names": [*things, *stuff],
        "is_thing": [True] * len(things) + [False] * len(stuff),
        "novel_mask": [name in novel for name in (*things, *stuff)] if novel else None,
    }
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
    things, stuff = list(metadata.thing_classes), list(metadata.stuff_classes)
    names, fold = [*things, *stuff], metadata.get("fold_from")
    novel = set(metadata.get("novel_classes") or ())
    if fold is not None:
        names = [*names[:fold], "background"]
    return SemanticEvaluator(
        records=records,
        read_truth=lambda record: read_label_map(record["sem_seg_file_name"]),
        class_names=names,
        ignore_label=metadata.ignore_label,
        novel_mask=[name in novel for name in names] if novel else None,
        is_thing=[True] * len(things) + [False] * (len(names) - len(things)) if things else None,
        fold_from=fold,
        output_dir=output_dir,
    )


def panoptic_labels(record: Mapping[str, Any], ignore_label: int = 255) -> np.ndarray:
    """Class labels of a picture's panoptic truth: (H, W) int64; void and crowds are ignored."""
    path, segments = record["pan_seg_file_name"], record["segments_info"]
    ids = segment_ids(read_segment_colours(path))
    check_segments(ids, segments, path)
    labels = np.full(ids.shape, ignore_label, np.int64)
    for segment in segments:
        if not segment.get("iscrowd"):
            labels[ids == segment["id"]] = segment["category_id"]
    return labels
