"""Weights of TorchScript archives, such as OpenAI's CLIP files, read without running their code.

``torch.jit.load`` compiles and partly runs what an archive holds, and ``torch.load`` refuses
archives when it may read weights only. An archive is a zip: ``data.pkl`` is the tree of modules,
``data/N`` are the bytes of the tensors. Here the tree is unpickled into plain objects; anything but
modules, tensors and lists of numbers is refused.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MARK = "/constants.pkl"
_TREE = "/data.pkl"
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# A forged archive may name one tensor, or one module, over and over: what is copied out of it stays
# within so many times its size, and a CLIP has a few thousand modules and tensors.
_MOST_COPIES = 4
_MOST_NODES = 1_000_000


class _ScriptModule:
    """Stands for a module of the archive and keeps its attributes."""

    attributes: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _TreeUnpickler(pickle._Unpickler):
    """Knows modules, tensors and lists of plain values, and nothing else.

    The reader written in Python, since the compiled one makes a table as long as the largest number
    in the file says.
    """

    def __init__(self, tree: bytes, read_record: Callable[[str], bytes], most_bytes: int) -> None:
        super().__init__(BytesIO(tree))
        self._read_record = read_record
        self._bytes_left = most_bytes
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of a name; called by the base class."""
        # Each is made anew: a pickle may set attributes of what it is given.
        if module == "__torch__" or module.startswith("__torch__."):
            return type("ScriptModule", (_ScriptModule,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: self._rebuild(*args[:4])
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle":
            return lambda *args: args[0]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """Read a storage; called by the base class."""
        _, dtype, key, _, count = pid
        if key not in self._storages:
            content = self._read_record(str(key))
            self._spend(len(content))
            size = torch.empty(0, dtype=dtype).element_size()
            if len(content) != size * count:
                raise pickle.UnpicklingError(f"its storage {key} has {len(content)} bytes")
            flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else None
            self._storages[key] = torch.empty(0, dtype=dtype) if flat is None else flat
        return self._storages[key]

    def _rebuild(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> Tensor:
        # In Python's numbers, which do not overflow.
        self._spend(math.prod(size) * storage.element_size())
        # A copy, because several tensors may lie in one storage.
        return torch.as_strided(storage, size, stride, offset).clone()

    def _spend(self, num_bytes: int) -> None:
        self._bytes_left -= num_bytes
        if self._bytes_left < 0:
            raise pickle.UnpicklingError("its tensors are larger than the file by far")


def is_jit_archive(path: Path) -> bool:
    """Tell whether a file is a zip with the constants of a scripted or traced module."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(_MARK) for name in archive.namelist())


def read_jit_archive(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive by dotted name, on the CPU, in stored precision.

    A file that is damaged, or holds more than modules and plain values, raises nearly anything.
    """
    with zipfile.ZipFile(path) as archive:
        trees = [name for name in archive.namelist() if name.endswith(_TREE)]
        root = min(trees, key=len).removesuffix(_TREE)
        tree = _TreeUnpickler(
            _read_stored(archive, root + _TREE),
            lambda key: _read_stored(archive, f"{root}/data/{key}"),
            _MOST_COPIES * path.stat().st_size,
        ).load()
    return _flatten(tree)


def _read_stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a member; torch compresses none, so that a compressed one may be small to blow up."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its part {name} is compressed, as torch.jit.save never does")
    return archive.read(entry)


def _flatten(tree: object) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    pending: list[tuple[str, object, tuple[int, ...]]] = [("", tree, ())]
    num_nodes = 0
    while pending:
        prefix, node, above = pending.pop()
        num_nodes += 1
        if num_nodes > _MOST_NODES:
            raise ValueError("its modules are shared over and over")
        if id(node) in above:
            raise ValueError(f"the module {prefix} holds itself")
        if isinstance(node, Tensor):
            tensors[prefix] = node
        elif isinstance(node, _ScriptModule):
            children = reversed(getattr(node, "attributes", {}).items())
            for name, child in children:
                pending.append((f"{prefix}.{name}".lstrip("."), child, (*above, id(node))))
    return tensors
