"""Pictures whose pixels are numbers: labels of classes, and ids of panoptic segments.

Legend: H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

# Share of a picture by which the areas of its segments may differ from what the file says.
_AREA_GAP = 0.01
# Modes of Pillow that hold one number a pixel.
_LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def read_label_map(path: str, dtype: type = np.int64) -> np.ndarray:
    """Read a picture of class labels, of 8 or more bits: (H, W), a copy that may be changed.

    Detectron2's evaluators name the ``dtype``.
    It is png, tif or what else Pillow reads; a FileNotFoundError or ValueError says that it is
    missing, no picture, or of several channels.
    """
    with _opened(path) as picture:
        if picture.mode not in _LABEL_MODES:
            raise ValueError(
                f"label map {path} has the mode {picture.mode}, expected one number a pixel; "
                "convert it from colours to class labels"
            )
        return np.array(picture, dtype=dtype)


def read_segment_colours(path: str) -> np.ndarray:
    """Read a picture of COCO's panoptic format: (H, W, 3) uint8, the bytes of segment ids.

    A FileNotFoundError or ValueError says that it is missing, or no picture of three channels.
    """
    with _opened(path) as picture:
        if picture.mode != "RGB":
            raise ValueError(
                f"panoptic map {path} has the mode {picture.mode}, expected RGB, whose bytes are "
                "the segments' ids; it may be a map of class labels"
            )
        return np.asarray(picture)


def segment_ids(colours: np.ndarray) -> np.ndarray:
    """Join the bytes (H, W, 3) of COCO's panoptic pictures: (H, W) int32, R + 256 G + 65536 B."""
    # Wider first: 256 times a byte overflows one.
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def check_segments(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], path: str, *, all_listed: bool = True
) -> None:
    """Hold a panoptic picture's (H, W) ids against its rows of the annotation file.

    A ValueError says that a row has no pixel, a pixel no row (unless not ``all_listed``), or that
    the rows' ``area`` is that of another picture.
    """
    found, counts = (part.tolist() for part in np.unique(ids, return_counts=True))
    pixels = dict(zip(found, counts, strict=True))
    listed = {int(row["id"]) for row in segments}
    missing = sorted(listed - pixels.keys())
    # 0 is COCO's unlabelled.
    strange = sorted(pixels.keys() - listed - {0}) if all_listed else []
    gap = sum(abs(pixels.get(row["id"], 0) - row["area"]) for row in segments if "area" in row)
    fault = ""
    if missing:
        fault = f"has no pixel of segment {missing[0]}, which the annotation file lists"
    elif strange:
        fault = f"has pixels of segment {strange[0]}, which the annotation file does not list"
    elif gap > _AREA_GAP * ids.size:
        fault = f"has segments of other areas than the annotation file, by {gap:.0f} px"
    if fault:
        raise ValueError(
            f"panoptic map {path} {fault}; it may be another picture's: check the folder"
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
