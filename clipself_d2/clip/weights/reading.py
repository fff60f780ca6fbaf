"""The one reader of files of weights; none of the kinds that it knows can run code here."""

import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from clipself_d2.clip.weights.jit_archive import is_jit_archive, read_jit_archive
from clipself_d2.clip.weights.plain_pickle import DAMAGE, SCALARS, load_plain_pickle

# What the readers of the kinds raise for damaged files; damaged pickles give nearly anything.
_UNREADABLE = (*DAMAGE, SafetensorError, zipfile.BadZipFile, RuntimeError, OSError, AssertionError)
# What torch, and this project's readers, say of a pickle that names more than tensors.
_NEEDS_CODE = re.compile(r"(?:GLOBAL|asks for) (\w[\w.]*\.\w+)")
# Torch begins with advice to read such a file with its code; what is wrong follows.
_ADVICE = re.compile(r".*WeightsUnpickler error: ", re.DOTALL)
# The number at the beginning of torch's older files, 0x1950a86a20f9469cfc6c.
_TORCH_MARK = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_HEAD = 32


def read_weights_file(path: str | Path) -> Any:
    """Read a file of weights of any kind without running code that it may hold.

    Args:
        path: A safetensors file, by its name; else by its content one of ``torch.save``, a
            TorchScript archive such as OpenAI's, or a pickle of plain data and numpy arrays such as
            those of Detectron2's model zoo.

    Returns:
        What it holds, mostly tensors on the CPU or arrays by name, perhaps under "model" or
        "state_dict".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or asks for more than tensors, arrays and plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        return _read(path)
    except _UNREADABLE as error:
        needs_code = _NEEDS_CODE.search(str(error))
        if needs_code is not None:
            raise ValueError(
                f"{path} cannot be read as weights alone: it asks for {needs_code.group(1)}, which "
                "could run code; have a file of names and tensors alone written where it was made"
            ) from error
        raise ValueError(
            f"{path} cannot be read as safetensors, as a TorchScript archive, as a file of "
            f"torch.save or as a pickle of arrays; it may be cut short: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """What is wrong, without the advice that torch puts before and behind it."""
    text = _ADVICE.sub("", str(error)).strip().partition("\n")[0]
    return text if text and "weights_only" not in text else type(error).__name__


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path, device="cpu")
    if zipfile.is_zipfile(path):
        # torch never compresses: what would unpack to more than it is was made to fill the memory.
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it is an archive that would unpack to {unpacked} bytes")
        if is_jit_archive(path):
            return read_jit_archive(path)
    elif not _is_older_torch(path):
        with path.open("rb") as stream:
            return load_plain_pickle(stream)
    known = [(stand_in, ".".join(name)) for name, stand_in in SCALARS.items()]
    with torch.serialization.safe_globals(known):  # type: ignore[arg-type]
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_older_torch(path: Path) -> bool:
    """Tell whether torch wrote a file before 1.6, or by its older form."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    return _TORCH_MARK in head or tarfile.is_tarfile(path)
