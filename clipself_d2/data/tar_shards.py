"""Pictures inside tar files, as WebDataset shards such as those of CC3M have them.

A member is addressed as ``<shard>.tar::<member>@<offset>+<size>``, with offset and size in bytes:
whoever has the address can read the member without an index. ``<shard>.tar::<member>`` alone is
found by a search through the shard.
"""

import glob
import json
import logging
import os
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

logger = logging.getLogger(__name__)

SEPARATOR = ".tar::"
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
INDEX_SUFFIX = ".index.json"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PLACE = re.compile(r"@(\d+)\+(\d+)$")

# Name, offset and size in bytes.
Member = tuple[str, int, int]


def is_member(path: str | Path) -> bool:
    """Tell whether a path addresses a picture in a shard."""
    return SEPARATOR in str(path)


def is_hidden(name: str) -> bool:
    """Tell files that begin with a dot, or lie so, such as the ``._photo.jpg`` of macOS."""
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts)


def member_address(shard: Path, member: Member) -> str:
    """Make the address of a member, for ``read_member``."""
    name, offset, size = member
    return f"{shard}::{name}@{offset}+{size}"


def member_record(shard: Path, member: Member) -> dict[str, Any]:
    """Make the record of a member; its ``image_id`` tells equal names of two shards apart."""
    address = member_address(shard, member)
    return {"file_name": address, "image_id": f"{shard.stem}/{member[0]}"}


def read_member(address: str) -> bytes:
    """Read a picture's bytes by its address, with or without the place.

    Raises a FileNotFoundError where shard or member is missing, and a ValueError where the shard is
    no tar file, or ends before the member does.
    """
    stem, _, name = address.partition(SEPARATOR)
    shard = Path(stem + ".tar")
    place = _PLACE.search(name)
    if place is None:
        found = [member for member in index_shard(shard) if member[0] == name]
        if not found:
            raise FileNotFoundError(f"shard {shard} has no picture {name}")
        _, offset, size = found[0]
    else:
        offset, size = int(place[1]), int(place[2])
    with shard.open("rb") as stream:
        # A picture that is cut would be decoded in part, or take the memory that its size asks for.
        if offset + size > os.fstat(stream.fileno()).st_size:
            raise ValueError(
                f"shard {shard} ends before the picture {address!r} does; replace the shard, and "
                f"remove {shard.name}{INDEX_SUFFIX}"
            )
        stream.seek(offset)
        return stream.read(size)


def expand_shards(pattern: str) -> list[Path]:
    """List the shards of a pattern, sorted; a FileNotFoundError or ValueError says which is none.

    The pattern has a range such as ``{000000..000331}``, ``*`` or ``?``, or is a plain path.
    """
    found = []
    for name in _expand_ranges(os.path.expanduser(pattern)):
        matches = glob.glob(name) if glob.has_magic(name) else [name]
        if not matches or not Path(matches[0]).is_file():
            raise FileNotFoundError(f"shard {name} of webdataset:{pattern} does not exist")
        found += matches
    wrong = [name for name in found if not name.endswith(".tar")]
    if wrong:
        raise ValueError(f"shard {wrong[0]} of webdataset:{pattern} is no .tar file")
    return [Path(name) for name in sorted(set(found))]


def _expand_ranges(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    if int(first) > int(last):
        raise ValueError(f"range {match[0]} of {pattern} counts down; write the smaller first")
    names = []
    for number in range(int(first), int(last) + 1):
        text = str(number).zfill(len(first))
        names += _expand_ranges(pattern[: match.start()] + text + pattern[match.end() :])
    return names


def index_shard(shard: Path) -> list[Member]:
    """List name, offset and size of a shard's pictures, in its order.

    The list is kept beside the shard as ``<shard>.index.json`` where that folder can be written,
    and made again when the shard's size or time changes. A ValueError refuses what is no tar file,
    or compressed.
    """
    state = shard.stat()
    # In nanoseconds, since a shard may be written twice in a second.
    stamp = [state.st_size, state.st_mtime_ns]
    cache = shard.with_name(shard.name + INDEX_SUFFIX)
    members = _read_index(cache, stamp)
    if members is None:
        members = _scan(shard)
        _write_index(cache, stamp, members)
    return members


def _scan(shard: Path) -> list[Member]:
    try:
        with tarfile.open(shard, "r:") as archive:
            return [
                (entry.name, entry.offset_data, entry.size)
                for entry in archive
                if entry.isreg() and not entry.issparse() and _is_picture(entry.name)
            ]
    except tarfile.TarError as error:
        raise ValueError(
            f"shard {shard} cannot be read ({error}); it must be a tar file without compression"
        ) from error


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def _read_index(cache: Path, stamp: list[int]) -> list[Member] | None:
    try:
        # A row is shorter than the header of its member.
        if cache.stat().st_size > stamp[0]:
            return None
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["stamp"] != stamp:
            return None
        rows = [(str(name), int(offset), int(size)) for name, offset, size in content["members"]]
    # Whatever is wrong with a file that anybody may have written: overflow is of 1e999, recursion
    # of deep nesting.
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    inside = all(offset >= 0 <= size <= stamp[0] - offset for _, offset, size in rows)
    return rows if inside and all(_is_picture(name) for name, _, _ in rows) else None


def _write_index(cache: Path, stamp: list[int], members: list[Member]) -> None:
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps({"stamp": stamp, "members": members}), encoding="utf-8")
        os.replace(partial, cache)
    except OSError as error:
        logger.warning("the index %s cannot be kept (%s); shards are read again", cache, error)
