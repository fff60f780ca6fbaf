"""Annotation files of open-vocabulary COCO and LVIS from the official ones.

Rows are copied as they are written in the official file; nothing but whole rows is left out.
"""

import json
import logging
import os
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from clipself_d2.data.datasets import coco_ov, lvis_ov
from clipself_d2.data.json_rows import JsonPart, scan_rows

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
    """Write the files of open-vocabulary COCO, where they are missing.

    The training file keeps annotations of the 48 base classes, the validation file those of all
    65; both leave out images without any.

    Args:
        root: Folder that holds ``coco/``.
        force: Whether to write them again.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: If an official file is missing.
        ValueError: If one is not the official file.
    """
    files = root / "coco" / "annotations"
    listed = coco_ov.OV_COCO_CLASSES
    base = [number for number, name in listed.items() if name not in coco_ov.NOVEL_CLASSES]
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
        for source, target, kept, num_images in (
            ("instances_train2017.json", coco_ov.TRAIN_FILE, base, 107_761),
            ("instances_val2017.json", coco_ov.VAL_FILE, list(listed), 4_836),
        )
    ]
    return [chosen.target for chosen in selections if write_selection(chosen, force=force)]


def prepare_ov_lvis(root: Path, *, force: bool = False) -> list[Path]:
    """Write the files of open-vocabulary LVIS, where they are missing.

    The training file leaves out annotations of rare classes and keeps all images. The minival
    file keeps the validation images that are in COCO's val2017.

    Args:
        root: Folder that holds ``lvis/``.
        force: Whether to write them again.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: If an official file is missing.
        ValueError: If one is not the official file.
    """
    files = root / "lvis"
    everything = list(lvis_ov.LVIS_CLASSES)
    base = [number for number in everything if number not in lvis_ov.NOVEL_IDS]
    train = Selection(
        source=files / "lvis_v1_train.json",
        target=files / lvis_ov.TRAIN_FILE,
        categories=lvis_ov.LVIS_CLASSES,
        listed=everything,
        kept=base,
        download="lvis_v1_train.json.zip of lvisdataset.org",
        num_images=100_170,
    )
    minival = Selection(
        source=files / lvis_ov.VAL_FILE,
        target=files / lvis_ov.MINIVAL_FILE,
        categories=lvis_ov.LVIS_CLASSES,
        listed=everything,
        kept=everything,
        download="lvis_v1_val.json.zip of lvisdataset.org",
        keep_image=_is_of_val2017,
    )
    return [chosen.target for chosen in (train, minival) if write_selection(chosen, force=force)]


def _is_of_val2017(image: Mapping[str, object]) -> bool:
    return str(image.get("coco_url", "")).split("/")[-2:-1] == ["val2017"]


def write_selection(selection: Selection, *, force: bool = False) -> bool:
    """Write a prepared file, unless it is there and made of the same official file.

    Args:
        selection: What to keep of what.
        force: Whether to write it in any case.

    Returns:
        Whether it was written. A file that another program wrote is kept, with a warning.

    Raises:
        FileNotFoundError: If the official file is missing.
        ValueError: If it is not the official file.
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
    partial = target.with_name(target.name + ".partial")
    info = {
        "description": f"part of {source.name}",
        "made_by": MAKER,
        "source": source.name,
        "source_bytes": source.stat().st_size,
    }
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(f"{HEAD}{json.dumps(info)}")
        _write_list(stream, "categories", (text[a:b] for a, b in rows.categories))
        _write_list(stream, "images", (text[a:b] for a, b in (rows.images[n] for n in images)))
        _write_list(stream, "annotations", (text[a:b] for a, b in rows.annotation_spans()))
        stream.write("}")
    os.replace(partial, target)
    _report(selection, len(images), rows)
    return True


def _is_outdated(selection: Selection) -> bool:
    target, source = selection.target, selection.source
    with target.open(encoding="utf-8") as stream:
        head = stream.read(HEAD_LENGTH)
    info: object = None
    if head.startswith(HEAD):
        try:
            info, _ = json.JSONDecoder().raw_decode(head, len(HEAD))
        except ValueError:
            info = None
    if not isinstance(info, dict) or info.get("made_by") != MAKER:
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
            if part.key == "categories":
                names[part.value["id"]] = part.value["name"]
                if part.value["id"] in listed:
                    rows.categories.append((part.start, part.end))
            elif part.key == "images":
                if selection.keep_image is None or selection.keep_image(part.value):
                    rows.images[part.value["id"]] = (part.start, part.end)
            elif part.key == "annotations":
                rows._add_annotation(part, kept)
        if names != dict(selection.categories):
            wrong = sorted(set(selection.categories.items()) ^ set(names.items()))
            raise ValueError(
                f"it has {len(names)} categories, expected {len(selection.categories)}; they "
                f"differ in {wrong[0]}"
            )
        rows._drop_strangers()
        return rows

    def _add_annotation(self, part: JsonPart, kept: set[int]) -> None:
        if part.value["category_id"] not in kept:
            self.dropped += 1
            return
        self.annotations.extend((part.start, part.end))
        self.annotation_images.append(part.value["image_id"])

    def _drop_strangers(self) -> None:
        """Leave out annotations of images that are not chosen; images may follow them."""
        spans, owners = self.annotations, self.annotation_images
        chosen = [n for n, image_id in enumerate(owners) if image_id in self.images]
        self.dropped += len(owners) - len(chosen)
        self.annotations = array("q", (spans[2 * n + i] for n in chosen for i in (0, 1)))
        self.annotation_images = array("q", (owners[n] for n in chosen))
        self.used = set(self.annotation_images)

    def annotation_spans(self) -> Iterator[tuple[int, int]]:
        """Start and end of every chosen annotation."""
        return zip(self.annotations[::2], self.annotations[1::2], strict=True)


def _write_list(stream: TextIO, key: str, rows: Iterator[str]) -> None:
    stream.write(f', "{key}": [')
    for number, row in enumerate(rows):
        stream.write(f"{',' if number else ''}\n{row}")
    stream.write("]")


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
