"""Detectron2's records from COCO and LVIS files, and their registration.

One reading of a file serves its checks and its records, which Detectron2's own loaders cannot do.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from clipself_d2.data.datasets.validate import check_coco_file, check_images_exist
from clipself_d2.data.items import Record
from clipself_d2.parts.annotation_files import DEFAULT_REMEDY, read_annotation_file
from clipself_d2.parts.annotation_rules import Row

logger = logging.getLogger(__name__)

# Keys of an LVIS image that records keep; ids are those of the file.
LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


def class_metadata(categories: Mapping[int, str], novel: Collection[str] = ()) -> dict[str, Any]:
    """Describe classes, by category id of the file, for Detectron2's metadata.

    ``thing_classes`` in the order of the ids, ``novel_classes``, ``base_classes``, and contiguous
    ids from 0.
    """
    ids = sorted(categories)
    names = [categories[category_id] for category_id in ids]
    return {
        "thing_classes": names,
        "novel_classes": [name for name in names if name in novel],
        "base_classes": [name for name in names if name not in novel],
        "thing_dataset_id_to_contiguous_id": {
            category_id: number for number, category_id in enumerate(ids)
        },
    }


def register_instances(
    name: str,
    *,
    json_file: Path,
    image_root: Path,
    evaluator_type: str,
    metadata: Mapping[str, Any],
    remedy: str = DEFAULT_REMEDY,
    prefer_url: bool = False,
    drop_novel: bool = False,
) -> str:
    """Register a COCO or LVIS file, which is read when it is used; returns the name.

    Args:
        name: Name of the data set.
        json_file: The file.
        image_root: Folder of the images.
        evaluator_type: ``coco_ov`` or ``lvis_ov``.
        metadata: At least what ``class_metadata`` gives.
        remedy: What the user can do about a missing or wrong file, an imperative clause.
        prefer_url: As ``image_path``.
        drop_novel: Whether records carry annotations of base classes only.
    """
    loader = partial(
        load_instances,
        json_file,
        image_root,
        metadata["thing_classes"],
        remedy=remedy,
        prefer_url=prefer_url,
        drop_classes=metadata["novel_classes"] if drop_novel else (),
    )
    DatasetCatalog.register(name, loader)
    MetadataCatalog.get(name).set(
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type=evaluator_type,
        **metadata,
    )
    return name


def register_images(
    name: str,
    *,
    json_file: Path,
    image_root: Path,
    remedy: str = DEFAULT_REMEDY,
    prefer_url: bool = False,
) -> str:
    """Register the images of a COCO or LVIS file without its annotations, for distillation."""
    loader = partial(load_images, json_file, image_root, remedy=remedy, prefer_url=prefer_url)
    DatasetCatalog.register(name, loader)
    MetadataCatalog.get(name).set(image_root=str(image_root))
    return name


def load_instances(
    json_file: Path,
    image_root: Path,
    class_names: Sequence[str],
    *,
    remedy: str = DEFAULT_REMEDY,
    prefer_url: bool = False,
    drop_classes: Collection[str] = (),
) -> list[Record]:
    """Read a COCO or LVIS file, check it, and make a record of every image.

    ``class_names`` are its categories in the order of their ids; annotations of ``drop_classes``
    are left out. Records are in the order of the image ids, with contiguous classes; errors are
    those of ``check_coco_file`` and of missing files.
    """
    # Names are compared with spaces, as LVIS's underscores are read.
    spaced = [name.replace("_", " ") for name in class_names]
    content = check_coco_file(json_file, spaced, remedy=remedy)
    # In the order of the ids, whatever the order of the file.
    numbers = {
        row["id"]: number
        for number, row in enumerate(sorted(content["categories"], key=lambda row: row["id"]))
    }
    dropped = {number for number, name in enumerate(class_names) if name in drop_classes}
    records = {
        row["id"]: {
            **_image_record(row, image_root, prefer_url),
            **{key: row[key] for key in LVIS_KEYS if key in row},
            "annotations": [],
        }
        for row in sorted(content["images"], key=lambda row: row["id"])
    }
    for row in content["annotations"]:
        number = numbers[row["category_id"]]
        if number not in dropped:
            records[row["image_id"]]["annotations"].append(_annotation_record(row, number))
    logger.info("%d images in %s", len(records), json_file)
    return _with_files(list(records.values()), remedy)


def load_images(
    json_file: Path, image_root: Path, *, remedy: str = DEFAULT_REMEDY, prefer_url: bool = False
) -> list[Record]:
    """Read the images of a COCO or LVIS file, in its order; annotations are ignored."""
    images = read_annotation_file(json_file, ("images",), remedy=remedy)["images"]
    return _with_files([_image_record(row, image_root, prefer_url) for row in images], remedy)


def image_path(row: Row, image_root: Path, *, prefer_url: bool = False) -> str:
    """Find an image's file: ``file_name`` below the root, or the last two parts of ``coco_url``.

    ``prefer_url`` takes the URL where both are given: LVIS takes its validation images from two
    folders of COCO, and only the URL names the folder.
    """
    url = row.get("coco_url")
    if url and (prefer_url or "file_name" not in row):
        return os.path.join(image_root, *str(url).split("/")[-2:])
    # An absolute name stands by itself: join then drops the root.
    return os.path.join(image_root, row["file_name"])


def _image_record(row: Row, image_root: Path, prefer_url: bool) -> Record:
    return {
        "file_name": image_path(row, image_root, prefer_url=prefer_url),
        "image_id": row["id"],
        "height": row["height"],
        "width": row["width"],
    }


def _annotation_record(row: Row, number: int) -> Record:
    """The record of an annotation of class ``number``."""
    record = {
        "category_id": number,
        "bbox": row["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "iscrowd": row.get("iscrowd") or 0,
    }
    mask = row.get("segmentation")
    if not mask:
        return record
    # COCO's crowds have run lengths that are not compressed, as Detectron2's masks must be.
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, *mask["size"])
    return {**record, "segmentation": mask}


def _with_files(records: list[Record], remedy: str) -> list[Record]:
    check_images_exist((record["file_name"] for record in records), remedy=remedy)
    return records
