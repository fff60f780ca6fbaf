"""Pictures whose pixels are numbers: labels of classes, and ids of panoptic segments.

Legend: H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# Modes of Pillow that hold one number a pixel.
_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read_label_map(path: str, dtype: type = np.int64) -> np.ndarray:
    """Read a picture of class labels, of 8 or more bits: png, tif and what else Pillow reads.

    Args:
        path: File.
        dtype: Number type of the result.

    Returns:
        (H, W) labels, a copy that may be changed.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no picture, or has several channels.
    """
    with _opened(path) as picture:
        if picture.mode not in _LABEL_MODES:
            raise ValueError(
                f"label map {path} has the mode {picture.mode}, expected one number a pixel; "
                "convert it from colours to class labels"
            )
        return np.array(picture, dtype=dtype)


def read_segment_colours(path: str) -> np.ndarray:
    """Read a picture of COCO's panoptic format.

    Args:
        path: File.

    Returns:
        (H, W, 3) uint8 RGB, the three bytes of every pixel's segment id.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no picture of three channels.
    """
    with _opened(path) as picture:
        if picture.mode != "RGB":
            raise ValueError(
                f"panoptic map {path} has the mode {picture.mode}, expected RGB, whose bytes are "
                "the segments' ids; it may be a map of class labels"
            )
        return np.asarray(picture)


def segment_ids(colours: np.ndarray) -> np.ndarray:
    """Join the bytes of COCO's panoptic pictures.

    Args:
        colours: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) int32: R + 256 G + 65536 B.
    """
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    ids: np.ndarray = red + 256 * green + 65536 * blue
    return ids


def check_segments(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], path: str, *, all_listed: bool = True
) -> None:
    """Hold a panoptic picture against its segments.

    Args:
        ids: (H, W) ids.
        segments: Rows of the annotation file with ``id``.
        path: The picture, for the message.
        all_listed: Whether ids that no row lists are refused.

    Raises:
        ValueError: If a row has no pixel, or a pixel no row.
    """
    listed = {int(row["id"]) for row in segments}
    drawn = {int(value) for value in np.unique(ids)} - {0}
    missing = sorted(listed - drawn)
    strange = sorted(drawn - listed) if all_listed else []
    if missing or strange:
        what = f"has no pixel of segment {missing[0]}" if missing else f"has segment {strange[0]}"
        lists = "lists" if missing else "does not list"
        raise ValueError(
            f"panoptic map {path} {what}, which the annotation file {lists} "
            f"({len(missing)} such missing, {len(strange)} not listed); it belongs to another "
            "file: check the folder of the maps"
        )


def _opened(path: str) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"label map {path} does not exist") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"label map {path} cannot be decoded ({error}); replace it") from error
    return picture
