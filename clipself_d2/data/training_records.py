"""The records that a detector trains on, without objects that it cannot train on."""

import logging
from collections import Counter

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import BoxMode

from clipself_d2.data.items import Record, check_named
from clipself_d2.parts.annotation_rules import sound_polygons
from clipself_d2.parts.metadata import check_detectron2_file

logger = logging.getLogger(__name__)

FLAT_BOX = "with a box of no or negative width or height are left out"
FLAT_POLYGON = (
    "have polygons without an area, which are left out, and the object where it has no other"
)
NO_MASK = "without a mask are left out, as MODEL.MASK_ON is set"


def read_training_records(cfg: CfgNode) -> list[Record]:
    """Read DATASETS.TRAIN as Detectron2 does, and leave out objects that cannot be learned.

    Boxes have an area, and objects a mask where MODEL.MASK_ON is set. A ValueError says that no
    data set is named, an annotation file is faulty, or nothing is left.
    """
    names = cfg.DATASETS.TRAIN
    check_named(names, "DATASETS.TRAIN")
    for name in names:
        # What is mended is said below, of the records.
        check_detectron2_file(name, quiet=True)
    records: list[Record] = get_detection_dataset_dicts(
        names,
        filter_empty=False,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        if cfg.MODEL.KEYPOINT_ON
        else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    # Of pictures with label maps alone nothing can be left out.
    if not any("annotations" in record for record in records):
        return records
    keep_learnable(records, needs_masks=cfg.MODEL.MASK_ON)
    rows = (row for record in records for row in record.get("annotations", ()))
    if all(row.get("iscrowd", 0) for row in rows):
        parts = "a box and a mask" if cfg.MODEL.MASK_ON else "a box"
        raise ValueError(
            f"DATASETS.TRAIN {tuple(names)} has no object with {parts} that is no crowd; correct "
            "the annotations, or name another data set"
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    return records


def keep_learnable(records: list[Record], *, needs_masks: bool) -> None:
    """Leave out, in place, what cannot be learned; one warning for each kind tells how many.

    Crowds, which are not learned, never need masks.
    """
    counts: Counter[str] = Counter()
    for record in records:
        if record.get("annotations"):
            rows = (_learnable(row, needs_masks, counts) for row in record["annotations"])
            record["annotations"] = [row for row in rows if row is not None]
    for fault, count in counts.items():
        logger.warning("training: %d objects %s", count, fault)


def _learnable(row: Record, needs_masks: bool, counts: Counter[str]) -> Record | None:
    """The row without its faults, or None; Detectron2's own reading leaves flat polygons in."""
    if not _has_area(row):
        counts[FLAT_BOX] += 1
        return None
    if row.get("iscrowd", 0) is None:
        # Detectron2 would take it for a crowd.
        row = {**row, "iscrowd": 0}
    mask = row.get("segmentation")
    if mask is None or (isinstance(mask, list | dict) and not mask):
        if not needs_masks or row.get("iscrowd", 0):
            return row
        counts[NO_MASK] += 1
        return None
    if not isinstance(mask, list):
        return row
    sound = sound_polygons(mask)
    if len(sound) == len(mask):
        return row
    counts[FLAT_POLYGON] += 1
    return {**row, "segmentation": sound} if sound else None


def _has_area(row: Record) -> bool:
    # Rotated boxes are Detectron2's business.
    if len(row["bbox"]) != 4:
        return True
    if row["bbox_mode"] == BoxMode.XYWH_ABS:
        # Detectron2's conversion goes by a tensor: 70 s for all boxes of COCO.
        return bool(row["bbox"][2] > 0 and row["bbox"][3] > 0)
    left, top, right, bottom = BoxMode.convert(
        list(row["bbox"]), row["bbox_mode"], BoxMode.XYXY_ABS
    )
    return bool(right > left and bottom > top)
