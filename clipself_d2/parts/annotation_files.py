"""The one reading of annotation files: before training and before scoring, whoever named them."""

import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipself_d2.parts.annotation_rules import (
    CATEGORY_RULES,
    IMAGE_RULES,
    INSTANCE_RULES,
    TRAINING,
    Row,
    Rule,
    Sizes,
)

logger = logging.getLogger(__name__)

Content = dict[str, list[Row]]

IMAGE_KEYS = ("id", "width", "height")
# One of these names an image's file; LVIS has the second alone.
FILE_KEYS = ("file_name", "coco_url")
INSTANCE_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "images": IMAGE_KEYS,
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
DEFAULT_REMEDY = "correct it, or prepare it as datasets/README.md says"
# Letters of a faulty value in a message.
MAX_SHOWN = 60


def read_json(path: str | Path, *, remedy: str = DEFAULT_REMEDY) -> Any:
    """Read a json file; errors, as of all here, end with ``remedy``, an imperative clause."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file {path} is missing; {remedy}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        # The traceback has a thousand levels.
        raise ValueError(f"file {path} is not JSON: it is nested too deeply; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"file {path} is not JSON ({error}); {remedy}") from error


def _fault(path: str | Path, what: str, remedy: str) -> ValueError:
    return ValueError(f"annotation file {path} {what}; {remedy}")


def read_annotation_file(
    path: str | Path,
    sections: Sequence[str],
    *,
    remedy: str = DEFAULT_REMEDY,
    purpose: str = TRAINING,
) -> Content:
    """Read a json file of lists of objects under ``sections``, and check its images.

    What it is read for, ``purpose``, only the images' files depend on.
    """
    content = read_json(path, remedy=remedy)
    if not isinstance(content, dict):
        expected = f"expected an object with the keys {', '.join(sections)}"
        raise _fault(path, f"holds a {type(content).__name__}, {expected}", remedy)
    for section in sections:
        rows = content.get(section)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _fault(path, f"lacks a list of objects under {section!r}", remedy)
    if "images" not in sections:
        return content
    images = content["images"]
    check_keys(path, "images", images, IMAGE_KEYS, remedy)
    if purpose == TRAINING and not all(any(key in row for key in FILE_KEYS) for row in images):
        check_keys(path, "images", images, FILE_KEYS[:1], remedy)
    if not images:
        raise _fault(path, "lists no image", remedy)
    apply_rules(path, images, IMAGE_RULES, {}, section="images", purpose=purpose, remedy=remedy)
    check_unique(path, "images", images, "id", remedy)
    if len({type(row["id"]) for row in images}) > 1:
        raise _fault(path, "has image ids of which some are texts", "number the images")
    absolute = sum(os.path.isabs(str(row.get("file_name", ""))) for row in images)
    if absolute and purpose == TRAINING:
        words = "images have an absolute file_name; the folder of the images is not used"
        logger.warning("%s: %d %s", path, absolute, words)
    return content


def read_instances(
    path: str | Path, *, remedy: str = DEFAULT_REMEDY, quiet: bool = False
) -> Content:
    """Read a COCO or LVIS file of boxes and masks for training; mend or refuse what is faulty.

    One warning tells the number of each kind of mended rows, unless ``quiet``, as it will be said
    later.
    """
    content = read_annotation_file(path, tuple(INSTANCE_SECTIONS), remedy=remedy)
    return check_instances(path, content, purpose=TRAINING, remedy=remedy, quiet=quiet)


def check_instances(
    path: str | Path, content: Content, *, purpose: str, remedy: str, quiet: bool = False
) -> Content:
    """Check the categories and objects of a file that ``read_annotation_file`` gave.

    As ``read_instances``.
    """
    categories, rows = content["categories"], content["annotations"]
    check_keys(path, "annotations", rows, INSTANCE_SECTIONS["annotations"], remedy)
    check_keys(path, "categories", categories, INSTANCE_SECTIONS["categories"], remedy)
    check_listed(path, rows, "image_id", content["images"], remedy)
    check_listed(path, rows, "category_id", categories, remedy)
    check_categories(path, categories, remedy)
    sizes = {row["id"]: (int(row["width"]), int(row["height"])) for row in content["images"]}
    kept = apply_rules(
        path, rows, INSTANCE_RULES, sizes, purpose=purpose, remedy=remedy, quiet=quiet
    )
    check_unique(path, "annotations", rows, "id", remedy)
    check_pixels(path, rows, remedy)
    return {**content, "annotations": kept}


def check_categories(path: str | Path, categories: list[Row], remedy: str) -> None:
    """Refuse categories without a number and a name of their own."""
    check_keys(path, "categories", categories, INSTANCE_SECTIONS["categories"], remedy)
    if not categories:
        raise _fault(path, "lists no category", remedy)
    apply_rules(
        path, categories, CATEGORY_RULES, {}, section="categories", purpose=TRAINING, remedy=remedy
    )
    for key in ("id", "name"):
        check_unique(path, "categories", categories, key, remedy)


def apply_rules(
    path: str | Path,
    rows: list[Row],
    rules: Sequence[Rule],
    sizes: Sizes,
    *,
    section: str = "annotations",
    purpose: str,
    remedy: str,
    quiet: bool = False,
) -> list[Row]:
    """Mend or refuse faulty rows of one section, by rules in the order of the checks.

    ``sizes`` are (width, height) by image id.
    """
    rules = [rule for rule in rules if purpose in rule.purposes]
    counts: Counter[tuple[str, str]] = Counter()
    kept: list[Row] = []
    for number, row in enumerate(rows):
        mended: Row | None = row
        for rule in rules:
            if mended is None or not rule.finds(mended, sizes):
                continue
            if rule.mend is None:
                place = f"in entry {number} of {section!r}: {_shown(row)}"
                raise _fault(path, f"has {rule.fault} {place}, {rule.advice}", remedy)
            counts[rule.fault, rule.advice] += 1
            mended = rule.mend(mended, sizes)
        if mended is not None:
            kept.append(mended)
    for (fault, advice), count in counts.items():
        if not quiet:
            logger.warning("%s: %d rows have %s; %s", path, count, fault, advice)
    return kept


def _shown(row: Row) -> str:
    """The fields that faults are in, cut to a line."""
    keys = ("id", "file_name", "width", "height", "bbox", "segmentation", "iscrowd", "name")
    shown = {key: repr(row[key]) for key in keys if key in row}
    cut = {k: v if len(v) <= MAX_SHOWN else f"{v[:MAX_SHOWN]}..." for k, v in shown.items()}
    return ", ".join(f"{key} {value}" for key, value in cut.items())


def check_keys(
    path: str | Path, section: str, rows: list[Row], keys: Sequence[str], remedy: str
) -> None:
    """Raise a ValueError for rows that lack a key."""
    for number, row in enumerate(rows):
        for key in keys:
            if key not in row:
                place = f"in entry {number} of {section!r}"
                raise _fault(path, f"lacks the key {key!r} {place}", remedy)


def check_unique(path: str | Path, section: str, rows: list[Row], key: str, remedy: str) -> None:
    """Raise a ValueError for rows of which two have the same value under a key."""
    if len({row[key] for row in rows}) == len(rows):
        return
    value, count = Counter(row[key] for row in rows).most_common(1)[0]
    raise _fault(path, f"has {count} {section} with {key} {value!r}, expected one", remedy)


def check_listed(
    path: str | Path, rows: list[Row], key: str, listed: list[Row], remedy: str
) -> None:
    """Refuse rows whose ``image_id`` or ``category_id`` the file does not list."""
    # With the type: in Python 1, 1.0 and True are one key.
    known = {(type(row["id"]), row["id"]) for row in listed}
    for row in rows:
        value = row[key]
        if type(value) not in (int, str) or (type(value), value) not in known:
            section = {"image_id": "images", "category_id": "categories"}[key]
            lack = f"which {section!r} does not list"
            raise _fault(path, f"has an annotation with {key} {value!r}, {lack}", remedy)


def check_pixels(path: str | Path, rows: Sequence[Row], remedy: str) -> None:
    """Refuse sound boxes that are all in 0 to 1 and not all whole: fractions of the sides."""
    has_fraction = False
    # A loop, as it ends with the first box of a file in px.
    for side in itertools.chain.from_iterable(row["bbox"] for row in rows):
        if not 0 <= side <= 1:
            return
        has_fraction = has_fraction or side not in (0, 1)
    if has_fraction:
        advice = "multiply them by width and height of their image"
        raise _fault(path, f"has no bbox beyond 0 to 1, as if normalised; {advice}", remedy)
