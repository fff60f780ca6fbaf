"""Checks of annotation files before Detectron2 reads them: each fault in one sentence."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

IMAGE_KEYS = ("id", "width", "height")
# One of these names an image's file; LVIS has the second alone.
FILE_KEYS = ("file_name", "coco_url")
CATEGORY_KEYS = ("id", "name")
INSTANCE_KEYS = ("id", "image_id", "category_id", "bbox")
PANOPTIC_KEYS = ("image_id", "file_name", "segments_info")
SEGMENT_KEYS = ("id", "category_id")
DEFAULT_REMEDY = "download or prepare it as datasets/README.md says"

Row = dict[str, Any]


def read_annotation_file(
    path: str | Path, sections: Sequence[str], *, remedy: str = DEFAULT_REMEDY
) -> dict[str, list[Row]]:
    """Read a json file of rows.

    Args:
        path: The file.
        sections: Keys of the top level that must hold lists of objects.
        remedy: What the user can do about a fault, an imperative clause.

    Returns:
        The whole content.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON, or lacks a section, or lists no image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} is missing; {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"annotation file {path} is not JSON ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"annotation file {path} holds a {type(content).__name__}, expected an object with "
            f"the keys {', '.join(sections)}; {remedy}"
        )
    for section in sections:
        rows = content.get(section)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(
                f"annotation file {path} lacks a list of objects under {section!r}; {remedy}"
            )
    if "images" in sections:
        _check_keys(path, "images", content["images"], IMAGE_KEYS, remedy)
        if not all(any(key in row for key in FILE_KEYS) for row in content["images"]):
            _check_keys(path, "images", content["images"], FILE_KEYS[:1], remedy)
        if not content["images"]:
            raise ValueError(f"annotation file {path} lists no image; {remedy}")
    return content


def read_annotation_rows(path: str | Path, *, remedy: str = DEFAULT_REMEDY) -> list[Row]:
    """Read the annotations of a COCO file, or the rows of a COCO results file.

    Args:
        path: The file: an object with ``annotations``, or a list of objects.
        remedy: What the user can do about a fault, an imperative clause.

    Returns:
        Rows with ``image_id`` and ``bbox``.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON, holds neither, or a row lacks a key.
    """
    rows = _read_results(Path(path))
    if rows is None:
        rows = read_annotation_file(path, ("annotations",), remedy=remedy)["annotations"]
    _check_keys(Path(path), "annotations", rows, ("image_id", "bbox"), remedy)
    return rows


def _read_results(path: Path) -> list[Row] | None:
    """The rows of a file that is a list of objects; None for any other."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        if not stream.read(64).lstrip().startswith(b"["):
            return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return rows if all(isinstance(row, dict) for row in rows) else None


def check_coco_file(
    path: str | Path,
    expected_names: Sequence[str] | None = None,
    *,
    remedy: str = DEFAULT_REMEDY,
) -> dict[str, list[Row]]:
    """Check a COCO or LVIS instance file, or a COCO panoptic file.

    Args:
        path: The file; it is panoptic if its annotations hold ``segments_info``.
        expected_names: The vocabulary, in the order of category ids; any when None. An
            underscore in the file's names, as LVIS has, stands for a space.
        remedy: What the user can do about a fault, an imperative clause.

    Returns:
        The whole content.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON, lacks a key, lists no image, has other categories than
            expected, or an annotation of an unlisted image or category.
    """
    sections = ("images", "annotations", "categories")
    content = read_annotation_file(path, sections, remedy=remedy)
    categories, rows = content["categories"], content["annotations"]
    _check_keys(path, "categories", categories, CATEGORY_KEYS, remedy)
    if expected_names is not None:
        _check_names(path, categories, expected_names, remedy)
    if any("segments_info" in row for row in rows):
        _check_keys(path, "annotations", rows, PANOPTIC_KEYS, remedy)
        parts = [segment for row in rows for segment in row["segments_info"]]
        _check_keys(path, "segments_info", parts, SEGMENT_KEYS, remedy)
    else:
        _check_keys(path, "annotations", rows, INSTANCE_KEYS, remedy)
        parts = rows
    for section, key, column in (
        ("images", "image_id", rows),
        ("categories", "category_id", parts),
    ):
        known = {row["id"] for row in content[section]}
        for row in column:
            if row[key] not in known:
                raise ValueError(
                    f"annotation file {path} has an annotation with {key} {row[key]!r}, which "
                    f"{section!r} does not list; {remedy}"
                )
    return content


def check_images_exist(paths: Iterable[str | Path], *, remedy: str = DEFAULT_REMEDY) -> None:
    """Check that files are there, reading every folder once.

    Args:
        paths: Files that annotations name.
        remedy: What the user can do about a missing one, an imperative clause.

    Raises:
        FileNotFoundError: If one is missing.
    """
    listed: dict[str, set[str]] = {}
    missing: list[str] = []
    for path in paths:
        folder, name = os.path.split(path)
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


def _check_keys(
    path: str | Path, section: str, rows: list[Row], keys: Sequence[str], remedy: str
) -> None:
    for number, row in enumerate(rows):
        for key in keys:
            if key not in row:
                raise ValueError(
                    f"annotation file {path} lacks the key {key!r} in entry {number} of "
                    f"{section!r}; {remedy}"
                )


def _check_names(
    path: str | Path, categories: list[Row], expected_names: Sequence[str], remedy: str
) -> None:
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
