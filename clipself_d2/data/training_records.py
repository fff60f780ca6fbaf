"""The records that a detector trains on, without objects that it cannot train on."""

import logging

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.structures import BoxMode

from clipself_d2.data.items import Record, check_named
from clipself_d2.parts.metadata import check_detectron2_file

logger = logging.getLogger(__name__)


def read_training_records(cfg: CfgNode) -> list[Record]:
    """Read DATASETS.TRAIN as Detectron2 does, and leave out objects that cannot be learned.

    Args:
        cfg: The whole config.

    Returns:
        Detectron2's records; boxes have an area, and objects a mask where MODEL.MASK_ON is set.

    Raises:
        ValueError: If no data set is named, an annotation file is faulty, or nothing is left.
    """
    names = cfg.DATASETS.TRAIN
    check_named(names, "DATASETS.TRAIN")
    for name in names:
        check_detectron2_file(name)
    records: list[Record] = get_detection_dataset_dicts(
        names,
        filter_empty=False,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        if cfg.MODEL.KEYPOINT_ON
        else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    if not any("annotations" in record for record in records):
        return records
    keep_learnable(records, needs_masks=cfg.MODEL.MASK_ON)
    if not any(record.get("annotations") for record in records):
        wanted = "an object with a box and a mask" if cfg.MODEL.MASK_ON else "an object with a box"
        raise ValueError(
            f"DATASETS.TRAIN {tuple(names)} has no picture with {wanted}; correct the "
            "annotations, or name another data set"
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    return records


def keep_learnable(records: list[Record], *, needs_masks: bool) -> None:
    """Leave out objects without an area, and those without a mask; one warning tells how many.

    Args:
        records: Records with ``annotations`` or without, changed in place.
        needs_masks: Whether objects need a mask; crowds, which are not learned, never do.
    """
    flat = bare = 0
    for record in records:
        if not record.get("annotations"):
            continue
        boxed = [row for row in record["annotations"] if _has_area(row)]
        kept = [
            row
            for row in boxed
            if not needs_masks or row.get("segmentation") or row.get("iscrowd", 0)
        ]
        flat += len(record["annotations"]) - len(boxed)
        bare += len(boxed) - len(kept)
        record["annotations"] = kept
    if flat:
        logger.warning("%d boxes of no or negative width or height are left out of training", flat)
    if bare:
        logger.warning("%d objects without a mask are left out, as MODEL.MASK_ON is set", bare)


def _has_area(row: Record) -> bool:
    if len(row["bbox"]) != 4:
        return True
    left, top, right, bottom = BoxMode.convert(
        list(row["bbox"]), row["bbox_mode"], BoxMode.XYXY_ABS
    )
    return bool(right > left and bottom > top)
