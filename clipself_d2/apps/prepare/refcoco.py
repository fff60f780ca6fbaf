"""Checks of downloaded RefCOCO files against the published numbers, and their JSON twins."""

import json
import logging
from pathlib import Path

from tabulate import tabulate

from clipself_d2.data.datasets.refcoco import FAMILIES, IMAGE_FOLDER, REMEDY
from clipself_d2.data.datasets.refer_files import in_split, load_refer, read_refs

logger = logging.getLogger(__name__)

# Data set, split, references in the file, published if known, usable (with object and image).
Row = tuple[str, str, int, int | None, int]


def prepare_refcoco(root: Path, *, write_json: bool = False) -> list[Row]:
    """Check every data set whose references lie below a folder.

    Args:
        root: Folder with ``refcoco``, ``refcoco+``, ``refcocog`` or ``grefcoco``, and
            ``coco/train2014``.
        write_json: Whether to write ``refs(<splitBy>).json`` beside each pickle.

    Returns:
        A row for every split; they are logged as a table, with a warning for every number that is
        not the published one.
    """
    rows: list[Row] = []
    for prefix, family in FAMILIES.items():
        refs_file = root / family.folder / family.refs_name
        if refs_file.is_file() or refs_file.with_suffix(".json").is_file():
            rows += _check(root, prefix)
            if write_json:
                logger.info("Wrote %s", write_json_twin(refs_file))
    if not rows:
        files = [str(root / family.folder / family.refs_name) for family in FAMILIES.values()]
        raise FileNotFoundError(f"none of {', '.join(files)} exists; {REMEDY}")
    headers = ["data set", "split", "references", "published", "usable"]
    logger.info("References:\n%s", tabulate(rows, headers, tablefmt="pipe"))
    for prefix, split, count, published, usable in rows:
        expected = count if published is None else published
        if not count == usable == expected:
            logger.warning(
                "%s %s has %d references, %d usable, but %d %s",
                prefix,
                split,
                count,
                usable,
                expected,
                "are expected" if published is None else "were published",
            )
    return rows


def write_json_twin(refs_file: Path) -> Path:
    """Write references as JSON beside their pickle ``refs(<splitBy>).p``."""
    rows = read_refs(refs_file, remedy=REMEDY)
    target = refs_file.with_suffix(".json")
    try:
        text = json.dumps(rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{refs_file} has no form in JSON ({error}); {REMEDY}") from error
    # Complete or not at all: where the pickle is removed, the twin is the only copy.
    part = target.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)
    return target


def _check(root: Path, prefix: str) -> list[Row]:
    family = FAMILIES[prefix]
    folder = root / family.folder
    references = read_refs(folder / family.refs_name, remedy=REMEDY)
    rows: list[Row] = []
    for split, published in family.counts.items():
        count = sum(in_split(row, split) for row in references)
        records = load_refer(
            folder / family.refs_name,
            folder / "instances.json",
            root / IMAGE_FOLDER,
            split,
            remedy=REMEDY,
        )
        usable = len({record["ref_id"] for record in records})
        rows.append((prefix, split, count, published, usable))
    return rows
