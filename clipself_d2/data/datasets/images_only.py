"""Images without annotations, for distillation: a folder, a list, a COCO file, or tar shards."""

import os
from pathlib import Path

from clipself_d2.data.datasets.validate import check_images_exist
from clipself_d2.data.items import Record
from clipself_d2.data.tar_shards import (
    IMAGE_SUFFIXES,
    expand_shards,
    index_shard,
    is_hidden,
    member_record,
)


def folder_records(folder: Path) -> list[Record]:
    """Find the images of a folder and of those in it; ``image_id`` is the path inside the folder.

    Names that begin with a dot are passed over; a ValueError says that there is no image.
    """
    inside = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inside += [
            (Path(place) / file).relative_to(folder).as_posix()
            for file in files
            if file.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(file)
        ]
    if not inside:
        raise ValueError(f"folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return [{"file_name": str(folder / path), "image_id": path} for path in sorted(inside)]


def list_records(file: Path) -> list[Record]:
    """Read a text with one image path a line, relative to its folder or absolute.

    ``image_id`` is the line. A FileNotFoundError names a missing file, a ValueError says that the
    list is empty or no text, or repeats a line.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"list {file} is no text ({error}); write one path a line") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"list {file} names no image; write one path a line")
    if len(set(lines)) != len(lines):
        raise ValueError(f"list {file} names an image twice; write every path once")
    records = [{"file_name": str(file.parent / line), "image_id": line} for line in lines]
    check_images_exist((record["file_name"] for record in records), remedy=f"correct {file}")
    return records


def shard_records(pattern: str) -> list[Record]:
    """List the pictures of tar shards, of a pattern as of ``expand_shards``.

    ``file_name`` is an address that ``read_picture`` can open, ``image_id`` the shard's name and
    the member's. A ValueError says that there is no picture.
    """
    records = [
        member_record(shard, member)
        for shard in expand_shards(pattern)
        for member in index_shard(shard)
    ]
    if not records:
        raise ValueError(
            f"the shards of webdataset:{pattern} hold no image ({', '.join(IMAGE_SUFFIXES)})"
        )
    return records
