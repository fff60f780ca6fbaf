"""Fixtures of data sets: shards and encoded pictures."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def write_shard() -> Callable[..., Path]:
    """Function that writes a tar file of members, bytes by name."""

    def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
        with tarfile.open(path, mode) as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def jpeg() -> Callable[[int], bytes]:
    """Function that encodes a picture of 20 x 10 px of one red."""

    def encode(red: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (20, 10), (red, 0, 0)).save(stream, "JPEG")
        return stream.getvalue()

    return encode
