"""Pickles of plain data and numpy arrays, read without running code that they may hold.

Detectron2's model zoo and proposal files are such pickles. ``pickle`` calls whatever a file names;
here a name is looked up in a table of stand-ins, and a file that asks for anything else is refused.
Nothing of numpy is called with numbers of the file that have not been checked against its length.
"""

import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn, TypeAlias

import numpy as np

Names: TypeAlias = Mapping[tuple[str, str], Callable[..., Any]]

# What reading a damaged or forged file can raise; some bytes ask for more memory than there is.
DAMAGE = (
    pickle.UnpicklingError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    struct.error,
    MemoryError,
    OverflowError,
    RecursionError,
)
# Numbers and text of fixed width; objects, records and voids are left out.
_CODE = re.compile(r"b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU]\d{1,6}")
_BYTE_ORDERS = ("<", ">", "=", "|")


class _Ndarray:
    """Stands for the class numpy.ndarray."""


class PlainDtype:
    """Stands for numpy.dtype: numbers or text of fixed width, with a code such as ``f4``."""

    def __init__(self, code: object, *options: object) -> None:
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"it asks for an array of {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, order, *rest = state
        size = rest[3]
        if order not in _BYTE_ORDERS or any(part is not None for part in rest[:3]):
            raise pickle.UnpicklingError(f"it changes the type of an array to {state!r}")
        if size not in (-1, self.dtype.itemsize):
            raise pickle.UnpicklingError(f"its elements have {size!r} bytes")
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


def plain_scalar(kind: PlainDtype, raw: bytes | str) -> Any:
    """Stand for numpy.core.multiarray.scalar: a number of Python's type from its bytes."""
    return _array(kind, (), raw).item()


def _array(kind: object, shape: object, raw: object) -> np.ndarray:
    """Make an array of bytes whose number is right."""
    if not isinstance(kind, PlainDtype) or not isinstance(shape, tuple):
        raise pickle.UnpicklingError("it has an array without type or shape")
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise pickle.UnpicklingError(f"it has an array of shape {shape!r}")
    # Pickles of Python 2 hold bytes as text.
    content = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError(f"the content of an array is a {type(content).__name__}")
    if len(content) != math.prod(shape) * kind.dtype.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(content)} bytes")
    # Arrays of no elements are refused by frombuffer; a copy can be written to, and torch takes no
    # bytes in the order of other machines.
    flat = np.frombuffer(content, kind.dtype) if content else np.empty(0, kind.dtype)
    made: np.ndarray = flat.reshape(shape).astype(kind.dtype.newbyteorder("="))
    return made


def _reconstruct(kind: object, *_: object) -> np.ndarray:
    if kind is not _Ndarray:
        raise pickle.UnpicklingError("it asks for another kind of array")
    return np.empty(0, np.uint8)


def _from_buffer(raw: object, kind: object, shape: object, order: object) -> np.ndarray:
    if order != "F" or not isinstance(shape, tuple):
        return _array(kind, shape, raw)
    turned: np.ndarray = _array(kind, shape[::-1], raw).transpose()
    return turned


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


# Names of numpy 1 and 2.
_MODULES = ("numpy.core", "numpy._core")
SCALARS: Names = {
    ("numpy", "dtype"): PlainDtype,
    ("_codecs", "encode"): _encode,
    # Python 2 writes empty bytes as a call of the type without arguments.
    ("__builtin__", "bytes"): lambda: b"",
    **{(f"{module}.multiarray", "scalar"): plain_scalar for module in _MODULES},
}
ARRAYS: Names = {
    **SCALARS,
    ("numpy", "ndarray"): _Ndarray,
    ("collections", "OrderedDict"): OrderedDict,
    **{(f"{module}.multiarray", "_reconstruct"): _reconstruct for module in _MODULES},
    **{(f"{module}.numeric", "_frombuffer"): _from_buffer for module in _MODULES},
}


class _PlainUnpickler(pickle._Unpickler):
    """Calls stand-ins alone.

    The reader written in Python, since the compiled one makes a table as long as the largest number
    in the file says: a few bytes could take all memory.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    # Of the base class while it loads.
    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, stream: IO[bytes], names: Names) -> None:
        # The published files were written by Python 2.
        super().__init__(stream, encoding="latin1")
        self._names = names

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        found = self._names.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside the file")

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, PlainDtype):
            target.__setstate__(state)
        elif isinstance(target, np.ndarray):
            _, shape, kind, is_fortran, raw = state
            made = _from_buffer(raw, kind, shape, "F" if is_fortran else "C")
            # In place: other parts of the file may refer to the array already.
            whole = (1, made.shape, made.dtype, bool(is_fortran), made.tobytes("A"))
            target.__setstate__(whole)  # type: ignore[arg-type]
        elif not isinstance(target, OrderedDict):
            raise pickle.UnpicklingError(f"it sets attributes of a {type(target).__name__}")

    def _bytearray(self) -> None:
        # Python's own makes the array before it looks whether the file is that long.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray


def load_plain_pickle(stream: IO[bytes], names: Names = ARRAYS) -> Any:
    """Read a pickle of dicts, lists, text, numbers and numpy arrays.

    ``names`` is what the file may ask for, by module and name, and what is called instead; empty
    allows no arrays either. One of ``DAMAGE`` says that it is damaged or asks for anything else;
    nothing of it has run.
    """
    return _PlainUnpickler(stream, names).load()


def read_plain_pickle(path: str | Path, names: Names = ARRAYS) -> Any:
    """Read a file as ``load_plain_pickle`` does; an OSError or ValueError says what is wrong."""
    try:
        with Path(path).open("rb") as stream:
            return load_plain_pickle(stream, names)
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as plain data ({reason})") from error
