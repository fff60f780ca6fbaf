"""What rows of COCO and LVIS files must be: a table of faults, each with what becomes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

Row = dict[str, Any]
# (width, height) by image id.
Sizes = Mapping[object, tuple[int, int]]

# What a file is read for; the two scorers want other keys.
TRAINING, COCO_SCORING, LVIS_SCORING = "training", "coco", "lvis"
SCORING = (COCO_SCORING, LVIS_SCORING)
ALWAYS = (TRAINING, *SCORING)

MIN_POLYGON = 6
# Numbers beyond it are none; JSON has whole numbers that no float can hold.
MAX_NUMBER = 1e15
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class Rule:
    """A kind of fault.

    Attributes:
        fault: The fault of one row, after "has".
        finds: Tells whether a row has the fault, given the sizes of the images.
        advice: What is expected where it is refused; what is done where it is mended.
        mend: Makes the row that is read in its place, or None to leave it out; without it the
            file is refused.
        purposes: What the rule holds for.
    """

    fault: str
    finds: Callable[[Row, Sizes], bool]
    advice: str
    mend: Callable[[Row, Sizes], Row | None] | None = None
    purposes: tuple[str, ...] = ALWAYS


def is_number(value: Any) -> bool:
    """Tell whether a value is an int or a float, no truth value, of a size to reckon with."""
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER


def compressed_mask(mask: Any, size: tuple[int, int]) -> Any:
    """Turn polygons or run lengths of a (width, height) px picture into compressed run lengths."""
    if isinstance(mask, dict) and not isinstance(mask["counts"], list):
        return mask
    return mask_util.frPyObjects(mask, size[1], size[0])


def sound_polygons(mask: list[Any]) -> list[Any]:
    """Choose polygons, flat lists of px, of three corners or more that do not lie on a line."""
    return [part for part in mask if len(part) >= MIN_POLYGON and not _is_flat(part)]


def _is_flat(part: list[float]) -> bool:
    if len(part) % 2:
        return True
    # Corners on a line, not the signed area: a figure of eight has none, and yet has pixels.
    # Mostly the third corner tells, so that numpy would be slower.
    x, y = part[:2]
    across = down = 0.0
    for a, b in zip(part[2::2], part[3::2], strict=True):
        if across * (b - y) != down * (a - x):
            return False
        if not (across or down):
            across, down = a - x, b - y
    return True


def _no_id(row: Row, _: Sizes) -> bool:
    return type(row["id"]) not in (int, str)


def _no_size(row: Row, _: Sizes) -> bool:
    return not all(is_number(row[key]) and row[key] >= 1 for key in ("width", "height"))


def _no_file(row: Row, _: Sizes) -> bool:
    if isinstance(row.get("file_name"), str) and row["file_name"]:
        return False
    url = row.get("coco_url")
    return "file_name" in row or not (isinstance(url, str) and url)


def _strange_lists(row: Row, _: Sizes) -> bool:
    lists = [row[key] for key in LVIS_LISTS if key in row]
    return not all(isinstance(x, list) and all(type(i) is int for i in x) for x in lists)


def _no_box(row: Row, _: Sizes) -> bool:
    box = row["bbox"]
    return not (isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box)))


def _empty_box(row: Row, _: Sizes) -> bool:
    return min(row["bbox"][2:]) == 0


def _strange_mask(row: Row, _: Sizes) -> bool:
    mask = row.get("segmentation")
    if mask is None or isinstance(mask, dict):
        return False
    if not isinstance(mask, list):
        return True
    return not all(
        isinstance(part, list)
        and set(map(type, part)) <= {int, float}
        and sum(map(abs, part)) <= MAX_NUMBER
        for part in mask
    )


def _strange_runs(row: Row, sizes: Sizes) -> bool:
    mask = row.get("segmentation")
    if not isinstance(mask, dict):
        return False
    width, height = sizes[row["image_id"]]
    if mask.get("size") != [height, width]:
        return True
    counts = mask.get("counts")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        return True
    # pycocotools takes it as given that the runs fill the picture.
    return bool(sum(counts) != width * height)


def _unpacked(text: str) -> list[int] | None:
    """Run lengths of their compressed text, which pycocotools reads past its end if it is wrong."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        # Five bits a letter, of COCO's code: bit 5 says that more follow, bit 4 is the sign.
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        # From the fourth on, the difference to the count before the last.
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts if not shift else None


def _bad_polygons(row: Row, _: Sizes) -> bool:
    mask = row.get("segmentation")
    return bool(mask) and isinstance(mask, list) and len(sound_polygons(mask)) < len(mask)


def _with_sound_polygons(row: Row, _: Sizes) -> Row | None:
    left = sound_polygons(row["segmentation"])
    return {**row, "segmentation": left} if left else None


def _without_bad_polygons(row: Row, sizes: Sizes) -> Row:
    """An object without a sound polygon keeps its box, and has a mask of no pixel."""
    left = sound_polygons(row["segmentation"])
    if left:
        return {**row, "segmentation": left}
    width, height = sizes[row["image_id"]]
    empty = mask_util.encode(np.zeros((height, width), np.uint8, order="F"))
    return {**row, "segmentation": {**empty, "counts": empty["counts"].decode()}}


def _no_area(row: Row, _: Sizes) -> bool:
    return not (is_number(row.get("area")) and row["area"] >= 0)


def _with_area(row: Row, sizes: Sizes) -> Row:
    area: Any = row["bbox"][2] * row["bbox"][3]
    if row.get("segmentation"):
        runs = compressed_mask(row["segmentation"], sizes[row["image_id"]])
        area = mask_util.area(mask_util.merge(runs) if isinstance(runs, list) else runs)
    return {**row, "area": float(area)}


def _dropped(_: Row, __: Sizes) -> None:
    return None


IMAGE_RULES = (
    Rule(
        "an id that is neither a whole number nor a text",
        _no_id,
        "expected a number for each image",
    ),
    Rule("no size", _no_size, "expected width and height, in px"),
    Rule(
        "no file_name", _no_file, "expected the image's path below its folder", purposes=(TRAINING,)
    ),
    Rule(
        "a list of categories that is no list of ids",
        _strange_lists,
        f"expected lists of category ids under {' and '.join(LVIS_LISTS)}",
    ),
)
CATEGORY_RULES = (
    Rule(
        "an id that is no whole number",
        lambda row, _: type(row["id"]) is not int,
        "expected numbers, which the annotations have as category_id",
    ),
    Rule(
        "a name that is no words",
        lambda row, _: not (isinstance(row["name"], str) and row["name"].strip()),
        "expected words",
    ),
)
BOX_RULES = (
    Rule(
        "a bbox that is not four finite numbers", _no_box, "expected [x, y, width, height], in px"
    ),
    Rule(
        "a box of negative width or height",
        lambda row, _: min(row["bbox"][2:]) < 0,
        "left out",
        _dropped,
    ),
)
INSTANCE_RULES = (
    Rule("an id that is neither a whole number nor a text", _no_id, "expected numbers from 1"),
    Rule(
        "an iscrowd that is neither 0 nor 1",
        lambda row, _: row.get("iscrowd", 0) not in (0, 1, None),
        "expected 0 or 1",
    ),
    *BOX_RULES,
    Rule(
        "a box of zero width or height",
        _empty_box,
        "left out of training",
        _dropped,
        purposes=(TRAINING,),
    ),
    Rule(
        "a box of zero width or height",
        _empty_box,
        "counted as the reference scorers count it: as never found",
        lambda row, _: row,
        purposes=SCORING,
    ),
    Rule(
        "a segmentation that is neither polygons nor run lengths",
        _strange_mask,
        "expected a list of polygons, each a list of x, y, x, y in px, or no such key",
    ),
    Rule(
        "run lengths of a mask that do not fit its image",
        _strange_runs,
        "expected counts, and size as [height, width] of the image, or no such key",
    ),
    Rule(
        "a polygon without an area",
        _bad_polygons,
        "these polygons are left out, and the object where it has no other",
        _with_sound_polygons,
        purposes=(TRAINING,),
    ),
    Rule(
        "a polygon without an area",
        _bad_polygons,
        "these polygons are left out of the masks",
        _without_bad_polygons,
        purposes=SCORING,
    ),
    Rule(
        "no area",
        _no_area,
        "taken from the mask, or from the box where there is none",
        _with_area,
        purposes=SCORING,
    ),
    Rule(
        "no iscrowd",
        lambda row, _: row.get("iscrowd") is None,
        "taken as 0",
        lambda row, _: {**row, "iscrowd": 0},
        purposes=(COCO_SCORING,),
    ),
    # LVIS knows no such key.
    Rule(
        "an iscrowd of null",
        lambda row, _: row.get("iscrowd", 0) is None,
        "taken as 0",
        lambda row, _: {**row, "iscrowd": 0},
        purposes=(LVIS_SCORING,),
    ),
)
# Of the annotations of a panoptic file.
SEGMENT_RULES = (
    Rule(
        "a file_name or segments_info of another kind",
        lambda row, _: (
            not (isinstance(row["file_name"], str) and row["file_name"])
            or not isinstance(row["segments_info"], list)
            or not all(
                isinstance(part, dict) and type(part.get("id", 0)) is int
                for part in row["segments_info"]
            )
        ),
        "expected the name of a PNG, and a list of segments with whole numbers as ids",
    ),
)
