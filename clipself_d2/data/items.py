"""What data sets, mappers and models pass on: Detectron2's dicts, by the names used here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import get_detection_dataset_dicts
from PIL import Image
from torch import Tensor

from clipself_d2.data.pictures import to_tensor

# Of a data set: ``file_name`` and ``image_id`` at least.
Record = dict[str, Any]
# Of a mapper, for a model: ``image`` (3, H, W) uint8 RGB at least.
Item = dict[str, Any]


def check_named(names: Sequence[str], key: str) -> None:
    """Refuse to go on without a data set.

    Args:
        names: Value of a key.
        key: The key, for the message.

    Raises:
        ValueError: If there is no name.
    """
    if not names:
        raise ValueError(f"{key} is empty; name a registered data set")


def read_records(names: Sequence[str], key: str) -> list[Record]:
    """Read the records of data sets, those without annotations too.

    Args:
        names: Registered names.
        key: Key that holds them, for the message.

    Returns:
        The records of all, in order.

    Raises:
        ValueError: If there is no name.
    """
    check_named(names, key)
    records: list[Record] = get_detection_dataset_dicts(
        list(names), filter_empty=False, check_consistency=False
    )
    return records


def check_items(items: Sequence[Item], needed: Sequence[str], model: object, tool: str) -> None:
    """Raise where a model is given the items of another loader, such as Detectron2's own.

    Args:
        items: The batch.
        needed: Keys that every item has.
        model: The model, for the message.
        tool: Command whose loaders give such items.

    Raises:
        ValueError: If an item lacks a key.
    """
    missing = [key for key in needed if any(key not in item for item in items)]
    if missing:
        raise ValueError(
            f"{type(model).__name__} is given pictures without {', '.join(missing)}; Detectron2's "
            f"own loaders do not add them: run it by {tool}"
        )


def picture_item(record: Record, picture: Image.Image, student: Image.Image) -> Item:
    """Begin an item with what all mappers of regions give.

    Args:
        record: The record.
        picture: Its picture.
        student: The picture as the student sees it.

    Returns:
        ``image`` (3, h, w) uint8, ``file_name``, ``image_id``, and ``height`` and ``width`` of the
        original.
    """
    return {
        "image": to_tensor(student),
        "file_name": record["file_name"],
        "image_id": record["image_id"],
        "height": picture.height,
        "width": picture.width,
    }


def scale_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Carry boxes from a picture to its scaled copy.

    Args:
        boxes: (R, 4) XYXY px of the picture.
        old: (width, height) of the picture.
        new: (width, height) of the copy.

    Returns:
        (R, 4) float32 XYXY px of the copy; both axes use the scale of the longest side.
    """
    scale = max(new) / max(old)
    return torch.from_numpy(boxes * scale).float()
