"""Pictures with captions in Detectron2's catalogs.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set): ``emoji_captions_train``,
``emoji_captions_val``, ``coco_captions_train`` and ``coco_captions_val`` (COCO 2017). Others are
named by where they lie, in DATASETS.TRAIN:

- ``captions:/captions.json:/folder``: COCO's captions file with the folder of the images;
- ``captions:/list.tsv:/folder`` or ``.csv``: rows of a picture's path and a caption, with or
  without a header, paths relative to the folder;
- ``captions_webdataset:/shards-{000000..000331}.tar``: pictures with ``.txt`` or ``.json``
  (``caption``) of the same stem.

A record has ``file_name``, ``image_id`` and ``captions``, a list of at least one sentence.
"""

import csv
import json
import logging
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets.emoji_world import emoji_remedy
from clipself_d2.data.datasets.validate import check_images_exist
from clipself_d2.data.items import Record
from clipself_d2.data.tar_shards import expand_shards, index_shard, is_hidden, member_record
from clipself_d2.parts.annotation_files import DEFAULT_REMEDY, read_annotation_file

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "file_name", "filename", "filepath", "path")
CAPTION_COLUMNS = ("caption", "title", "text", "sentence")
_DELIMITERS = {".tsv": "\t", ".csv": ","}
_TEXT_SUFFIXES = (".txt", ".json")


def register_captions(root: str | Path, prefix: str = "") -> list[str]:
    """Register the captions of the embedded data set and of COCO 2017; files are read on use."""
    names = []
    for split in ("train", "val"):
        # Names of files and folders carry COCO's year.
        for kind, year, remedy in (
            ("emoji", "", emoji_remedy(root)),
            ("coco", "2017", DEFAULT_REMEDY),
        ):
            file = Path(root) / kind / "annotations" / f"captions_{split}{year}.json"
            folder = Path(root) / kind / f"{split}{year}"
            names.append(f"{prefix}{kind}_captions_{split}")
            load = partial(caption_file_records, file, folder, remedy=remedy)
            DatasetCatalog.register(names[-1], load)
            MetadataCatalog.get(names[-1]).set(json_file=str(file), image_root=str(folder))
    return names


def read_coco_captions(file: Path, *, remedy: str = DEFAULT_REMEDY) -> list[tuple[Record, str]]:
    """Read COCO's captions file: its image's entry and the sentence for every caption, in order.

    A FileNotFoundError or ValueError refuses a missing file, another form, an empty caption, or one
    of an image that is not listed.
    """
    content = read_annotation_file(file, ("images", "annotations"), remedy=remedy)
    images = {row["id"]: row for row in content["images"]}
    found = []
    for row in content["annotations"]:
        if "caption" not in row or "image_id" not in row:
            raise ValueError(f"caption file {file} has an annotation without caption; {remedy}")
        image = images.get(row["image_id"])
        if image is None:
            raise ValueError(
                f"caption file {file} has a caption of image {row['image_id']!r}, which it does "
                f"not list; {remedy}"
            )
        found.append((image, _sentence(row["caption"], file, f"image {row['image_id']}")))
    return found


def caption_file_records(
    file: Path, folder: Path, *, remedy: str = "correct the file, or its path in DATASETS"
) -> list[Record]:
    """Read captions (COCO's json, ``.tsv`` or ``.csv``) and find their pictures.

    A FileNotFoundError or ValueError says which file, picture or caption is missing or faulty.
    """
    if file.suffix in _DELIMITERS:
        rows = [(name, name, caption) for name, caption in _read_list(file)]
    else:
        rows = []
        for image, caption in read_coco_captions(file, remedy=remedy):
            name = image.get("file_name") or str(image["coco_url"]).rpartition("/")[2]
            rows.append((image["id"], name, caption))
    records: dict[object, Record] = {}
    for image_id, name, caption in rows:
        record = records.setdefault(
            image_id, {"file_name": str(folder / name), "image_id": image_id, "captions": []}
        )
        record["captions"].append(caption)
    if not records:
        raise ValueError(f"caption file {file} has no caption; {remedy}")
    check_images_exist((str(record["file_name"]) for record in records.values()), remedy=remedy)
    return list(records.values())


def shard_caption_records(pattern: str) -> list[Record]:
    """List the captioned pictures of tar shards, of a pattern as of ``expand_shards``.

    Pictures without a caption are left out with a warning; a ValueError says that none has one.
    """
    records: list[Record] = []
    num_without = 0
    for shard in expand_shards(pattern):
        captions = _shard_captions(shard)
        for member in index_shard(shard):
            caption = captions.get(_stem(member[0]))
            if caption is None:
                num_without += 1
                continue
            records.append({**member_record(shard, member), "captions": [caption]})
    if not records:
        raise ValueError(
            f"no picture of webdataset:{pattern} has a caption, {num_without} have none; beside "
            "<stem>.jpg the shard needs <stem>.txt or <stem>.json with 'caption'"
        )
    if num_without:
        logger.warning("%d pictures of %s have no caption", num_without, pattern)
    return records


def read_captions(source: str, root: str | Path) -> list[str]:
    """Read the sentences of a corpus, without its pictures; at least one.

    The source is ``emoji`` (training captions below ``root``), COCO's captions json, a ``.tsv`` or
    ``.csv`` list, or a text file with one sentence a line.
    """
    remedy = "check --captions"
    file = Path(source).expanduser()
    if source == "emoji":
        file = Path(root) / "emoji" / "annotations" / "captions_train.json"
        remedy = emoji_remedy(root)
    if not file.is_file():
        raise FileNotFoundError(f"caption file {file} does not exist; {remedy}")
    if file.suffix == ".json":
        found = [caption for _, caption in read_coco_captions(file, remedy=remedy)]
    elif file.suffix in _DELIMITERS:
        found = [caption for _, caption in _read_list(file)]
    else:
        found = [line.strip() for line in _read_text(file).splitlines() if line.strip()]
    if not found:
        raise ValueError(f"caption file {file} has no caption; {remedy}")
    return found


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"caption file {file} is no text ({error})") from error


def _read_list(file: Path) -> list[tuple[str, str]]:
    """Paths and captions of a list; columns by a header, or else the first two."""
    lines = _read_text(file).splitlines()
    # A tab-separated caption may hold quotation marks of its own.
    cells = csv.reader(
        lines,
        delimiter=_DELIMITERS[file.suffix],
        quoting=csv.QUOTE_NONE if file.suffix == ".tsv" else csv.QUOTE_MINIMAL,
    )
    rows = [row for row in cells if any(cell.strip() for cell in row)]
    columns = _find_columns(rows[0]) if rows else None
    picture, caption = columns or (0, 1)
    found = []
    for number, row in enumerate(rows[1:] if columns else rows, start=1):
        if len(row) <= max(picture, caption):
            raise ValueError(
                f"caption file {file} has {len(row)} columns in row {number}, expected a "
                "picture's path and a caption"
            )
        name = row[picture].strip()
        found.append((name, _sentence(row[caption], file, name)))
    return found


def _find_columns(header: Sequence[str]) -> tuple[int, int] | None:
    """Columns of path and caption, if the first row names both."""
    words = [cell.strip().lower() for cell in header]
    paths = [words.index(name) for name in IMAGE_COLUMNS if name in words]
    captions = [words.index(name) for name in CAPTION_COLUMNS if name in words]
    return (paths[0], captions[0]) if paths and captions else None


def _sentence(text: object, file: Path, of: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"caption file {file} has the empty caption {text!r} of {of}; write a sentence or drop "
            "the row"
        )
    return " ".join(text.split())


def _stem(name: str) -> str:
    """What members of one sample share: the name up to the first full stop of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _shard_captions(shard: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                suffix = Path(entry.name).suffix.lower()
                if is_hidden(entry.name) or suffix not in _TEXT_SUFFIXES:
                    continue
                stream = archive.extractfile(entry)
                # Of folders and the like there is none.
                if stream is None:
                    continue
                text: Any = stream.read().decode("utf-8", errors="replace")
                if suffix == ".json":
                    content = json.loads(text)
                    if not isinstance(content, dict) or "caption" not in content:
                        continue
                    text = content["caption"]
                # Of .txt and .json the first counts.
                found.setdefault(_stem(entry.name), _sentence(text, shard, entry.name))
    except (tarfile.TarError, json.JSONDecodeError) as error:
        raise ValueError(f"shard {shard} cannot be read ({error})") from error
    return found
