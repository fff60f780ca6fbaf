"""Annotations to score against: mended, and under ids that every scorer reads."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipself_d2.parts.annotation_files import (
    INSTANCE_SECTIONS,
    Content,
    check_instances,
    check_keys,
    read_annotation_file,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Truth:
    """Annotations to score against.

    Attributes:
        content: The content, mended, under the ids of the file.
        image_numbers: Number by image id where ids are not those that every scorer can read.
        numbered: The content under numbers: what the scorers read; None where the file will do.
    """

    content: Content
    image_numbers: dict[object, int] | None
    numbered: Content | None


def read_truth(
    path: str | Path, *, purpose: str, required: Mapping[str, Sequence[str]], remedy: str
) -> Truth:
    """Read an annotation file so that all scorers read the same.

    ``purpose`` is ``COCO_SCORING`` or ``LVIS_SCORING``, and ``required`` are keys that the entries
    of a list must have beside those of all files. Errors are those of ``read_instances``.
    """
    content = read_annotation_file(path, tuple(INSTANCE_SECTIONS), remedy=remedy, purpose=purpose)
    for section, keys in required.items():
        check_keys(path, section, content[section], keys, remedy)
    before = content["annotations"]
    content = check_instances(path, content, purpose=purpose, remedy=remedy)
    rows = content["annotations"]
    is_changed = len(rows) < len(before) or any(
        new is not old for new, old in zip(rows, before, strict=True)
    )
    # The reference scorers take an object with id 0 for one that is never found.
    if any(type(row["id"]) is not int or row["id"] < 1 for row in rows):
        logger.warning("%s: annotation ids are no numbers from 1; they are numbered anew", path)
        content["annotations"] = [{**row, "id": i} for i, row in enumerate(rows, start=1)]
        is_changed = True
    ids = [row["id"] for row in content["images"]]
    if all(type(i) is int and i >= 0 for i in ids):
        return Truth(content, None, content if is_changed else None)
    logger.warning("%s: image ids are no whole numbers from 0; they are numbered to score", path)
    numbers = {image_id: number for number, image_id in enumerate(ids, start=1)}
    numbered = {
        **content,
        "images": [{**row, "id": numbers[row["id"]]} for row in content["images"]],
        "annotations": [
            {**row, "image_id": numbers[row["image_id"]]} for row in content["annotations"]
        ],
    }
    return Truth(content, numbers, numbered)
