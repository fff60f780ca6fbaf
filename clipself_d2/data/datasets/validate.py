"""Checks of annotation files against a vocabulary, of panoptic files, and of the pictures named."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipself_d2.parts.annotation_files import (
    DEFAULT_REMEDY,
    INSTANCE_SECTIONS,
    Content,
    apply_rules,
    check_categories,
    check_instances,
    check_keys,
    check_listed,
    check_unique,
    read_annotation_file,
    read_json,
)
from clipself_d2.parts.annotation_rules import BOX_RULES, SEGMENT_RULES, TRAINING, Row

PANOPTIC_KEYS = ("image_id", "file_name", "segments_info")
SEGMENT_KEYS = ("id", "category_id")


def read_annotation_rows(path: str | Path, *, remedy: str = DEFAULT_REMEDY) -> list[Row]:
    """Read the annotations of a COCO file, or the rows of a list of COCO results.

    Rows have ``image_id`` and ``bbox``; those with a box of negative size are left out. A
    FileNotFoundError or ValueError says what else is wrong, with the ``remedy``, an imperative
    clause.
    """
    rows = read_json(path, remedy=remedy) if _is_list(Path(path)) else None
    if rows is None or not all(isinstance(row, dict) for row in rows):
        rows = read_annotation_file(path, ("annotations",), remedy=remedy)["annotations"]
    check_keys(path, "annotations", rows, ("image_id", "bbox"), remedy)
    return apply_rules(path, rows, BOX_RULES, {}, purpose=TRAINING, remedy=remedy)


def _is_list(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        # The first bracket tells; the file may have gigabytes.
        return stream.read(64).lstrip().startswith(b"[")


def check_coco_file(
    path: str | Path,
    expected_names: Sequence[str] | None = None,
    *,
    remedy: str = DEFAULT_REMEDY,
    quiet: bool = False,
) -> Content:
    """Check a COCO or LVIS instance file, or a COCO panoptic file.

    Args:
        path: The file; it is panoptic if its annotations hold ``segments_info``.
        expected_names: The vocabulary, in the order of category ids; any when None. An
            underscore in the file's names, as LVIS has, stands for a space.
        remedy: What the user can do about a fault, an imperative clause.
        quiet: Whether nothing is said of what is mended, as it will be said later.

    Returns:
        The whole content, mended for training where that can be done.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON, lacks a key, lists no image, has other categories than
            expected, an annotation of an unlisted image or category, or a fault that cannot be
            mended.
    """
    content = read_annotation_file(path, tuple(INSTANCE_SECTIONS), remedy=remedy)
    check_keys(path, "categories", content["categories"], INSTANCE_SECTIONS["categories"], remedy)
    if expected_names is not None:
        _check_names(path, content["categories"], expected_names, remedy)
    if any("segments_info" in row for row in content["annotations"]):
        _check_segments(path, content, remedy)
        return content
    return check_instances(path, content, purpose=TRAINING, remedy=remedy, quiet=quiet)


def _check_segments(path: str | Path, content: Content, remedy: str) -> None:
    rows = content["annotations"]
    check_keys(path, "annotations", rows, PANOPTIC_KEYS, remedy)
    check_listed(path, rows, "image_id", content["images"], remedy)
    apply_rules(path, rows, SEGMENT_RULES, {}, purpose=TRAINING, remedy=remedy)
    for row in rows:
        parts = row["segments_info"]
        check_keys(path, "segments_info", parts, SEGMENT_KEYS, remedy)
        check_unique(path, f"segments of {row['file_name']}", parts, "id", remedy)
    segments = [segment for row in rows for segment in row["segments_info"]]
    check_listed(path, segments, "category_id", content["categories"], remedy)
    check_categories(path, content["categories"], remedy)
    # Stuff needs no box; of one that is there only the form counts.
    boxed = [segment for segment in segments if "bbox" in segment]
    apply_rules(path, boxed, BOX_RULES[:1], {}, purpose=TRAINING, remedy=remedy)


def check_images_exist(paths: Iterable[str | Path], *, remedy: str = DEFAULT_REMEDY) -> None:
    """Raise a FileNotFoundError unless files are there; every folder is read once."""
    listed: dict[str, set[str]] = {}
    missing: list[str] = []
    for path in paths:
        folder, name = os.path.split(path)
        # One listing of a folder is faster than a look at each of 100,000 files.
        if folder not in listed:
            listed[folder] = _files_in(folder)
        if name not in listed[folder]:
            missing.append(str(path))
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        verb = "are" if others else "is"
        raise FileNotFoundError(f"image {missing[0]}{others} {verb} missing; {remedy}")


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _check_names(
    path: str | Path, categories: list[Row], expected_names: Sequence[str], remedy: str
) -> None:
    # As contiguous numbers count them.
    ordered = sorted(categories, key=lambda row: row["id"])
    names = [str(row["name"]).replace("_", " ") for row in ordered]
    unknown = [name for name in names if name not in set(expected_names)]
    if unknown:
        raise ValueError(
            f"annotation file {path} has the category {unknown[0]!r}, which is not in the "
            f"vocabulary of {len(expected_names)} names; {remedy}"
        )
    if names != list(expected_names):
        absent = [name for name in expected_names if name not in set(names)]
        fault = f"lacks the category {absent[0]!r}" if absent else "orders its categories otherwise"
        raise ValueError(f"annotation file {path} {fault}; {remedy}")
