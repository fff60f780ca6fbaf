"""Weights of TorchScript archives, such as OpenAI's CLIP files, read without running their code.

``torch.jit.load`` compiles and partly runs what an archive holds, and ``torch.load`` refuses
archives when it may read weights only. An archive is a zip: ``data.pkl`` is the tree of modules,
``data/N`` are the bytes of the tensors. Here the tree is unpickled into plain objects; anything but
modules, tensors and lists of numbers is refused.
"""

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
# What damaged and forged archives raise on the way.
_DAMAGED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
)


class _ScriptModule:
    """Stands for a module of the archive and keeps its attributes."""

    attributes: dict[str, Any]

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _TreeUnpickler(pickle.Unpickler):
    """Knows modules, tensors and lists of plain values, and nothing else."""

    def __init__(self, tree: bytes, read_record: Callable[[str], bytes]) -> None:
        super().__init__(BytesIO(tree))
        self._read_record = read_record
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in of a name; called by the base class."""
        # Each is made anew: a pickle may set attributes of what it is given.
        if module == "__torch__" or module.startswith("__torch__."):
            return type("ScriptModule", (_ScriptModule,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: _rebuild(*args[:4])
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
            size = torch.empty(0, dtype=dtype).element_size()
            if len(content) != size * count:
                raise pickle.UnpicklingError(f"its storage {key} has {len(content)} bytes")
            flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else None
            self._storages[key] = torch.empty(0, dtype=dtype) if flat is None else flat
        return self._storages[key]


def is_jit_archive(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive.

    Args:
        path: Any file.

    Returns:
        True for a zip with the constants of a scripted or traced module.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(_MARK) for name in archive.namelist())


def read_jit_archive(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive.

    Args:
        path: File of ``torch.jit.save``.

    Returns:
        Parameters, buffers and other tensors on the CPU by dotted name, in stored precision.

    Raises:
        ValueError: If the file is damaged, or its tree holds more than modules and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            trees = [name for name in archive.namelist() if name.endswith(_TREE)]
            root = min(trees, key=len).removesuffix(_TREE)
            unpickler = _TreeUnpickler(
                archive.read(root + _TREE), lambda key: archive.read(f"{root}/data/{key}")
            )
            tree = unpickler.load()
        return _flatten(tree)
    except (*_DAMAGED, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a TorchScript archive; it may be cut short or hold more "
            f"than weights: {error}"
        ) from error


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    # A copy, because several tensors may lie in one storage.
    return torch.as_strided(storage, size, stride, offset).clone()


def _flatten(tree: object) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    pending: list[tuple[str, object, tuple[int, ...]]] = [("", tree, ())]
    while pending:
        prefix, node, above = pending.pop()
        if id(node) in above:
            raise ValueError(f"the module {prefix} holds itself")
        if isinstance(node, Tensor):
            tensors[prefix] = node
        elif isinstance(node, _ScriptModule):
            children = reversed(getattr(node, "attributes", {}).items())
            pending += [
                (f"{prefix}.{name}".lstrip("."), child, (*above, id(node)))
                for name, child in children
            ]
    return tensors
