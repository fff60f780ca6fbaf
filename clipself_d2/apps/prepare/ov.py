"""Annotation files of open-vocabulary COCO and LVIS from the official ones.

Rows are copied as they are written in the official file; nothing but whole rows is left out.
"""

import json
import logging
import os
from array import array
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipself_d2.data.datasets import coco_ov, lvis_ov
from clipself_d2.data.json_rows import scan_rows

logger = logging.getLogger(__name__)

MAKER = "clipself_d2"
HEAD = '{"info": '
# Characters of a file's beginning that hold its info.
HEAD_LENGTH = 4096


@dataclass(frozen=True)
class Selection:
    """What a prepared file keeps of an official one.

    Attributes:
        source: The official file.
        target: The file to write.
        categories: Name by category id of the official file, all of them.
        listed: Ids of the categories that the prepared file lists.
        kept: Ids of the categories whose annotations it keeps.
        keep_image: Called with an entry of ``images``.
        drop_empty: Whether images without a kept annotation are left out.
        num_images: Widely quoted number of images, for a warning; None where there is none.
        download: Where the official file comes from.
    """

    source: Path
    target: Path
    categories: Mapping[int, str]
    listed: Collection[int]
    kept: Collection[int]
    download: str
    keep_image: Callable[[Mapping[str, object]], bool] | None = None
    drop_empty: bool = False
    num_images: int | None = None


def prepare_ov_coco(root: Path, *, force: bool = False) -> list[Path]:
    """Write the files of open-vocabulary COCO that are missing (all by ``force``); return them.

    The training file keeps annotations of the 48 base classes, the validation file those of all 65;
    both leave out images without any.
    """
    files = root / "coco" / "annotations"
    listed = coco_ov.OV_COCO_CLASSES
    base = [number for number, name in listed.items() if name not in coco_ov.NOVEL_CLASSES]
    parts = (
        ("instances_train2017.json", coco_ov.TRAIN_FILE, base, 107_761),
        ("instances_val2017.json", coco_ov.VAL_FILE, list(listed), 4_836),
    )
    selections = [
        Selection(
            source=files / source,
            target=files / target,
            categories=coco_ov.COCO_THINGS,
            listed=listed,
            kept=kept,
            download="annotations_trainval2017.zip of cocodataset.org",
            drop_empty=True,
            num_images=num_images,
        )
        for source, target, kept, num_images in parts
    ]
    return [chosen.target for chosen in selections if write_selection(chosen, force=force)]


def prepare_ov_lvis(root: Path, *, force: bool = False) -> list[Path]:
    """Write the files of open-vocabulary LVIS that are missing (all by ``force``); return them.

    The training file leaves out annotations of rare classes and keeps all images. The minival file
    keeps the validation images that are in COCO's val2017.
    """
    files, everything = root / "lvis", lvis_ov.LVIS_CLASSES
    train = Selection(
        source=files / "lvis_v1_train.json",
        target=files / lvis_ov.TRAIN_FILE,
        categories=everything,
        listed=everything,
        kept=everything.keys() - lvis_ov.NOVEL_IDS,
        download="lvis_v1_train.json.zip of lvisdataset.org",
        num_images=100_170,
    )
    minival = replace(
        train,
        source=files / lvis_ov.VAL_FILE,
        target=files / lvis_ov.MINIVAL_FILE,
        kept=everything,
        download="lvis_v1_val.json.zip of lvisdataset.org",
        keep_image=_is_of_val2017,
        num_images=None,
    )
    return [chosen.target for chosen in (train, minival) if write_selection(chosen, force=force)]


def _is_of_val2017(image: Mapping[str, object]) -> bool:
    return str(image.get("coco_url", "")).split("/")[-2:-1] == ["val2017"]


def write_selection(selection: Selection, *, force: bool = False) -> bool:
    """Write a prepared file, unless it is there and made of the same official file.

    A file that another program wrote is kept, with a warning. Returns whether it was written.
    """
    source, target = selection.source, selection.target
    if target.is_file() and not force and not _is_outdated(selection):
        return False
    if not source.is_file():
        raise FileNotFoundError(
            f"annotation file {source} is missing; unpack {selection.download} there, or give "
            "another --root"
        )
    text = source.read_text(encoding="utf-8")
    try:
        rows = _Rows.collect(text, selection)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"annotation file {source} is not the official one ({error}); unpack "
            f"{selection.download} again"
        ) from error
    images = [number for number in rows.images if not selection.drop_empty or number in rows.used]
    info = {
        "description": f"part of {source.name}",
        "made_by": MAKER,
        "source": source.name,
        "source_bytes": source.stat().st_size,
    }
    sections = (
        ("categories", rows.categories),
        ("images", [rows.images[number] for number in images]),
        ("annotations", zip(rows.annotations[::2], rows.annotations[1::2], strict=True)),
    )
    partial = target.with_name(target.name + ".partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(f"{HEAD}{json.dumps(info)}")
        for key, spans in sections:
            stream.write(f', "{key}": [')
            for number, (start, end) in enumerate(spans):
                stream.write(f"{',' if number else ''}\n{text[start:end]}")
            stream.write("]")
        stream.write("}")
    os.replace(partial, target)
    _report(selection, len(images), rows)
    return True


def _is_outdated(selection: Selection) -> bool:
    target, source = selection.target, selection.source
    with target.open(encoding="utf-8") as stream:
        head = stream.read(HEAD_LENGTH)
    info: dict = {}
    if head.startswith(f'{HEAD}{{"description"'):
        info, _ = json.JSONDecoder().raw_decode(head, len(HEAD))
    if info.get("made_by") != MAKER:
        logger.warning("%s was not written by this tool; it is kept (--force replaces it)", target)
        return False
    if not source.is_file() or info.get("source_bytes") == source.stat().st_size:
        logger.info("%s is there; nothing to do", target)
        return False
    logger.warning("%s is written again: %s has changed", target, source)
    return True


@dataclass
class _Rows:
    """Places of the chosen rows in the official text."""

    categories: list[tuple[int, int]] = field(default_factory=list)
    images: dict[int, tuple[int, int]] = field(default_factory=dict)
    # Pairs of start and end, image ids beside them.
    annotations: array = field(default_factory=lambda: array("q"))
    annotation_images: array = field(default_factory=lambda: array("q"))
    dropped: int = 0
    used: set[int] = field(default_factory=set)

    @classmethod
    def collect(cls, text: str, selection: Selection) -> "_Rows":
        """Walk through the official text once."""
        rows = cls()
        names: dict[int, str] = {}
        listed, kept = set(selection.listed), set(selection.kept)
        for part in scan_rows(text):
            row, span = part.value, (part.start, part.end)
            if part.key == "categories":
                names[row["id"]] = row["name"]
                if row["id"] in listed:
                    rows.categories.append(span)
            elif part.key == "images":
                if selection.keep_image is None or selection.keep_image(row):
                    rows.images[row["id"]] = span
            elif part.key == "annotations" and row["category_id"] in kept:
                rows.annotations.extend(span)
                rows.annotation_images.append(row["image_id"])
            else:
                rows.dropped += part.key == "annotations"
        if names != dict(selection.categories):
            wrong = sorted(set(selection.categories.items()) ^ set(names.items()))
            raise ValueError(
                f"it has {len(names)} categories, expected {len(selection.categories)}; they "
                f"differ in {wrong[0]}"
            )
        # Images may follow their annotations.
        spans, owners = rows.annotations, rows.annotation_images
        chosen = [n for n, image_id in enumerate(owners) if image_id in rows.images]
        rows.dropped += len(owners) - len(chosen)
        # Starts and ends in turn.
        rows.annotations = array("q", (spans[2 * n + i] for n in chosen for i in (0, 1)))
        rows.annotation_images = array("q", (owners[n] for n in chosen))
        rows.used = set(rows.annotation_images)
        return rows


def _report(selection: Selection, num_images: int, rows: _Rows) -> None:
    logger.info(
        "%s: %d images, %d annotations (%d left out), %d categories listed, %d with annotations",
        selection.target,
        num_images,
        len(rows.annotation_images),
        rows.dropped,
        len(rows.categories),
        len(selection.kept),
    )
    if selection.num_images not in (None, num_images):
        logger.warning(
            "%s has %d images; %d are widely quoted",
            selection.target,
            num_images,
            selection.num_images,
        )
