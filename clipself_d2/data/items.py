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
    """Raise a ValueError if a key holds no name of a data set."""
    if not names:
        raise ValueError(f"{key} is empty; name a registered data set")


def read_records(names: Sequence[str], key: str) -> list[Record]:
    """Read the records of data sets, those without annotations too; ``key`` is for the message."""
    check_named(names, key)
    return get_detection_dataset_dicts(list(names), filter_empty=False, check_consistency=False)


def check_items(items: Sequence[Item], needed: Sequence[str], model: object, tool: str) -> None:
    """Raise a ValueError where a model is given items of another loader than its ``tool``'s."""
    missing = [key for key in needed if any(key not in item for item in items)]
    if missing:
        raise ValueError(
            f"{type(model).__name__} is given pictures without {', '.join(missing)}; Detectron2's "
            f"own loaders do not add them: run it by {tool}"
        )


def picture_item(record: Record, picture: Image.Image, student: Image.Image | np.ndarray) -> Item:
    """Begin an item with what all mappers of regions give.

    ``image`` (3, h, w) uint8 as the student sees it, ``file_name``, ``image_id``, and ``height``
    and ``width`` of the original.
    """
    return {
        "image": to_tensor(student),
        "file_name": record["file_name"],
        "image_id": record["image_id"],
        "height": picture.height,
        "width": picture.width,
    }


def scale_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Carry boxes (R, 4) XYXY px to a copy of the picture, as float32.

    Sizes are (width, height); both axes use the scale of the longest side.
    """
    scale = max(new) / max(old)
    return torch.from_numpy(boxes * scale).float()
