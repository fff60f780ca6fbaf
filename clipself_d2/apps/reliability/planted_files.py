"""Files with code planted in them; each would make a folder, the marker, if its code ran.

A writer is called with the path of the file and that of the marker.
"""

import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

Writer: TypeAlias = Callable[[Path, Path], object]
Pair: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
_YAML_TAG = "tag:yaml.org,2002:python/"


class _Planted:
    """Pickles as a call, which unpickling makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Pair:
        return self._call


def planted(marker: Path) -> object:
    """Make an object whose unpickling makes the marker."""
    return _Planted(os.mkdir, str(marker))


def _pickled(wrap: Callable[[object], object], protocol: int = 2) -> Writer:
    return lambda path, marker: path.write_bytes(pickle.dumps(wrap(planted(marker)), protocol))


def _code(marker: Path) -> str:
    """Python that makes the marker."""
    return f"__import__('os').mkdir({str(marker)!r})"


def _by_code(function: Callable[[str], Any]) -> Writer:
    """A call of eval or exec with text."""
    return lambda path, marker: path.write_bytes(
        pickle.dumps({"model": _Planted(function, _code(marker))}, 4)
    )


def _opcodes(template: bytes) -> Writer:
    """A pickle written by hand; %m is the marker."""
    return lambda path, marker: path.write_bytes(template.replace(b"%m", str(marker).encode()))


def _object_array(planted_object: object) -> object:
    return {"model": {"weight": np.array([planted_object], object)}, "__author__": "me"}


def _inner_torch(path: Path, marker: Path) -> None:
    """A tensor as ``pickle.dump`` writes it, whose bytes are a file of torch with code."""
    inner = BytesIO()
    torch.save({"a": planted(marker)}, inner)
    # Looked up by name, since torch does not export it.
    load = getattr(torch.storage, "_load_from_bytes")  # noqa: B009
    path.write_bytes(pickle.dumps({"model": {"weight": _Planted(load, inner.getvalue())}}, 2))


def _zoo(thing: object) -> object:
    return {"model": {"weight": np.ones(2, np.float32), "bias": thing}, "__author__": "zoo"}


def _torch_file(wrap: Callable[[object], object], *, zipped: bool = True) -> Writer:
    return lambda path, marker: torch.save(
        wrap(planted(marker)), path, _use_new_zipfile_serialization=zipped
    )


def _beside(thing: object) -> object:
    return {"model": {"weight": torch.ones(2, 4), "bias": torch.ones(2)}, "trainer": thing}


def _old_tar(path: Path, marker: Path) -> None:
    """Torch's oldest form: a tar with a pickle."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(planted(marker), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))


def _jit(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps((), 2))
        archive.writestr("archive/data.pkl", pickle.dumps({"a": planted(marker)}, 2))
        archive.writestr("archive/code/__torch__.py", f"import os\nos.mkdir({str(marker)!r})\n")


def _zip_bomb(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": planted(marker)}, 2))
        archive.writestr("archive/data/0", bytes(20_000_000))


def _safetensors(header: Mapping[str, Any], length: int | None = None) -> Writer:
    """A header that lies of what follows it."""

    def write(path: Path, marker: Path) -> None:
        text = json.dumps({**header, "__metadata__": {"call": f"os.mkdir({str(marker)!r})"}})
        size = len(text) if length is None else length
        path.write_bytes(struct.pack("<Q", size) + text.encode() + bytes(8))

    return write


def _tensor(start: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"weight": {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}}


# Kinds of files by name, whose suffix is that of the file.
WEIGHTS: Mapping[str, Writer] = {
    "protocol 0.pkl": _pickled(_zoo, 0),
    "protocol 2.pkl": _pickled(_zoo, 2),
    "protocol 5.pkl": _pickled(_zoo, 5),
    "beside the weights.pkl": _pickled(lambda thing: {"blobs": {}, "cfg": thing}),
    "eval.pkl": _by_code(eval),
    "exec.pkl": _by_code(exec),
    "object array.pkl": _pickled(_object_array, 2),
    "tensor of torch.pkl": _inner_torch,
    "text opcodes.pkl": _opcodes(b"cposix\nmkdir\n(S'%m'\ntR."),
    "instance opcode.pkl": _opcodes(b"(S'%m'\niposix\nmkdir\n."),
    "object opcode.pkl": _opcodes(b"(cposix\nmkdir\nS'%m'\no."),
    "dotted name.pkl": _opcodes(b"\x80\x04\x8c\x05numpy\x8c\x0bos.mkdir.__\x93(S'%m'\ntR."),
    "attributes set.pkl": _opcodes(b"ccollections\nOrderedDict\n)R(S'x'\ncposix\nmkdir\ndb."),
    "weights.pyth": _torch_file(lambda thing: {"model_state": {"weight": thing}}),
    "weights.pth": _torch_file(lambda thing: {"model": {"weight": thing}}),
    "trainer.pth": _torch_file(_beside),
    "older form.pth": _torch_file(_beside, zipped=False),
    "pickle named.pth": _pickled(_zoo),
    "plain.pt": _torch_file(lambda thing: {"visual.proj": thing}),
    "oldest form.tar": _old_tar,
    "script archive.pt": _jit,
    "compressed archive.pth": _zip_bomb,
    "pickle named.safetensors": _pickled(_zoo),
    "long header.safetensors": _safetensors({}, length=1 << 40),
    "far offsets.safetensors": _safetensors(_tensor(0, 1 << 40, [1 << 38])),
    "negative offsets.safetensors": _safetensors(_tensor(-8, 0, [2])),
    "other size.safetensors": _safetensors(_tensor(0, 8, [1 << 20, 1 << 20])),
}


def proposal_file(path: Path, marker: Path) -> None:
    """Write Detectron2's proposals of one image with code in them."""
    boxes = np.array([[0, 0, 4, 4]], np.float32)
    content = {"ids": [1], "boxes": [boxes], "objectness_logits": [planted(marker)]}
    path.write_bytes(pickle.dumps(content, 2))


def reference_file(path: Path, marker: Path) -> None:
    """Write references of REFER with code in a sentence."""
    row = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "train"}
    path.write_bytes(pickle.dumps([{**row, "sentences": [{"sent": planted(marker)}]}], 2))


def object_array_file(path: Path, marker: Path) -> None:
    """Write an array of objects as numpy does, .npy or .npz by the name."""
    array = np.array([[planted(marker), None]], object)
    with path.open("wb") as stream:
        if path.suffix == ".npz":
            np.savez(stream, allow_pickle=True, table=array)
        else:
            np.save(stream, array, allow_pickle=True)


def embedding_file(path: Path, marker: Path) -> None:
    """Write text embeddings with code in the place of the vectors."""
    torch.save({"names": ["dog"], "embeddings": planted(marker)}, path)


def shard(path: Path, marker: Path) -> None:
    """Write a tar of captioned pictures whose members lie outside of it."""
    with tarfile.open(path, "w") as archive:
        for name in (str(marker), f"../{marker.name}", f"{'../' * 20}{marker}"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for suffix, content in ((".jpg", b"\xff\xd8"), (".txt", b"a dog")):
                entry = tarfile.TarInfo(f"{name}/a{suffix}")
                entry.size = len(content)
                archive.addfile(entry, BytesIO(content))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def planted_text(template: str) -> Writer:
    """Plant text; %m is the marker, %c code that a reader might be tempted to run, and makes it."""

    def write(path: Path, marker: Path) -> None:
        text = template.replace("%m", str(marker)).replace("%c", _code(marker))
        path.write_text(text, encoding="utf-8")

    return write


# Values of a yaml key; %m is the marker, %c code that makes it.
YAML_VALUES: Mapping[str, str] = {
    "a call": '!!python/object/apply:os.mkdir ["%m"]',
    "a call by keywords": '!!python/object/apply:os.mkdir {kwds: {path: "%m"}}',
    "a call of a shell": '!!python/object/apply:subprocess.check_call [["mkdir", "%m"]]',
    "a new object": '!!python/object/new:os.system ["mkdir %m"]',
    "a subclass": '!!python/object/new:type {args: ["z", !!python/tuple [], {"extend": '
    '!!python/name:os.mkdir }], listitems: "%m"}',
    "a name": "!!python/name:os.mkdir",
    "a module": "!!python/module:os",
    "an object": "!!python/object:pathlib.Path {}",
    "eval of an import": '!!python/object/apply:eval ["%c"]',
    "eval of an attribute": '!!python/object/apply:eval ["().__class__.__base__"]',
    "eval of a lambda": '!!python/object/apply:eval ["(lambda: %c)()"]',
    "eval of a list": '!!python/object/apply:eval ["[%c for x in [1]]"]',
    "eval of a condition": '!!python/object/apply:eval ["[x for x in [1] if %c]"]',
    "eval of an item": '!!python/object/apply:eval ["[%c][0]"]',
    "eval of a call in a call": '!!python/object/apply:eval ["int(%c)"]',
    "eval of a large power": '!!python/object/apply:eval ["9**9**9**9"]',
    "eval of a long list": "!!python/object/apply:eval "
    '["[[[x for x in [%9]] for y in [%9]] for z in [%9]]"]',
    "eval with names": '!!python/object/apply:eval ["x", {x: !!python/name:os.mkdir }]',
    "exec": '!!python/object/apply:exec ["%c"]',
    "a tag in full": f'!<{_YAML_TAG}object/apply:os.mkdir> ["%m"]',
    "a tuple with a call": '!!python/tuple [!!python/object/apply:os.mkdir ["%m"]]',
    "a zoo file with a call": "!!python/object/apply:detectron2.model_zoo.get_config_file "
    '[!!python/object/apply:os.mkdir ["%m"]]',
}


def planted_yaml(value: str) -> Writer:
    """Plant one of ``YAML_VALUES`` in a config."""
    return planted_text(f"MODEL:\n  WEIGHTS: {value.replace('%9', ','.join('9' * 100))}\n")
