"""TorchScript archives read without running them."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from clipself_d2.clip.weights import jit_archive
from clipself_d2.clip.weights.jit_archive import is_jit_archive, read_jit_archive
from clipself_d2.clip.weights.reading import read_weights_file


class Part(nn.Module):
    """Parameters in two precisions and layouts, buffers, and what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.layers = nn.ModuleList([nn.LayerNorm(3), nn.LayerNorm(3)])
        self.narrow = nn.Parameter(torch.randn(4, 3).half().t())
        self.register_buffer("count", torch.tensor(224))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.sizes = [1, 2]
        self.word = "word"

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = layer(rows)
        return self.linear(rows @ self.narrow.float() @ self.narrow.float().t())


@pytest.fixture(params=["script", "trace"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    part = Part().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = (
            torch.jit.script(part)
            if request.param == "script"
            else torch.jit.trace(part, torch.randn(2, 3))
        )
        compiled.save(str(tmp_path / "part.pt"))
    return tmp_path / "part.pt"


def test_tensors_are_those_of_torch_bit_by_bit(archive: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(archive), map_location="cpu").state_dict()
    found = read_jit_archive(archive)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_archives_are_told_from_weights(archive: Path, tmp_path: Path) -> None:
    assert is_jit_archive(archive)
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("no zip")
    assert not is_jit_archive(tmp_path / "plain.pt")
    assert not is_jit_archive(tmp_path / "text.pt")


def test_reading_compiles_nothing(archive: Path, monkeypatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the archive was compiled")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch._C, "import_ir_module", refuse)
    assert read_jit_archive(archive)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def forge(path: Path, tree: bytes) -> Path:
    """Write an archive of a pickled tree, and of one storage of one float."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("part/data.pkl", tree)
        archive.writestr("part/constants.pkl", b"")
        archive.writestr("part/data/0", bytes(4))
    return path


@pytest.mark.parametrize("function", [exec, eval, __import__, getattr, Path.write_text])
def test_planted_code_is_refused_and_does_not_run(function, tmp_path: Path) -> None:
    target = tmp_path / "planted"
    tree = pickle.dumps(Call(function, f"open({str(target)!r}, 'w')", "x"), protocol=2)
    path = forge(tmp_path / "bad.pt", tree)
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read .* it asks for"):
        read_weights_file(path)
    assert not target.exists()


def spoiled(archive: Path, part: str, change: str) -> Path:
    """Copy an archive of which one part is cut to 4 bytes, left out or compressed."""
    path = archive.with_name("bad.pt")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            is_part, content, kind = name.endswith(part), source.read(name), zipfile.ZIP_STORED
            if is_part and change == "left out":
                continue
            if is_part and change == "compressed":
                kind = zipfile.ZIP_DEFLATED
            target.writestr(name, content[:4] if is_part and change == "cut" else content, kind)
    return path


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("/data/0", "cut", "cannot be read .* storage 0 has 4 bytes"),
        ("/data.pkl", "left out", "cannot be read"),
        ("/data/0", "left out", "cannot be read"),
        ("/data.pkl", "compressed", "(is compressed|would unpack)"),
        ("/data/0", "compressed", "(is compressed|would unpack)"),
    ],
)
def test_spoiled_archives_are_refused(archive: Path, part: str, change: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"bad\.pt .*{words}"):
        read_weights_file(spoiled(archive, part, change))


class Storage:
    """Pickles as a reference to a storage of the archive."""


class Forger(pickle.Pickler):
    def persistent_id(self, value: object) -> tuple | None:
        if isinstance(value, Storage):
            return ("storage", torch.FloatStorage, "0", "cpu", 1)
        return None


def forge_tensors(path: Path, tensors: list[object]) -> Path:
    """An archive with tensors that all lie over one storage of one float."""
    stream = io.BytesIO()
    Forger(stream, protocol=2).dump(tensors)
    return forge(path, stream.getvalue())


def tensor(*size: int) -> object:
    """A tensor of any size over one number."""
    return Call(torch._utils._rebuild_tensor_v2, Storage(), 0, size, (0,) * len(size), False, {})


@pytest.mark.parametrize("size", [(1_000, 1_000), (2**40, 2**40), (2**62, 4)])
def test_one_number_is_not_blown_up(size: tuple[int, ...], tmp_path: Path) -> None:
    path = forge_tensors(tmp_path / "bomb.pt", [tensor(*size)])
    with pytest.raises(ValueError, match=r"bomb\.pt .*larger than the file by far"):
        read_weights_file(path)


def test_one_tensor_is_not_copied_over_and_over(tmp_path: Path) -> None:
    path = forge_tensors(tmp_path / "bomb.pt", [tensor(100) for _ in range(1_000)])
    with pytest.raises(ValueError, match="larger than the file by far"):
        read_weights_file(path)


def test_a_large_number_makes_no_large_table(tmp_path: Path) -> None:
    """The compiled reader of pickles would ask for 64 GB here."""
    path = forge(tmp_path / "bomb.pt", b"\x80\x02Nr\xff\xff\xff\xff.")
    assert read_jit_archive(path) == {}


def test_modules_shared_over_and_over_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit_archive, "_MOST_NODES", 1000)
    module = jit_archive._ScriptModule()
    module.attributes = {}
    for _ in range(40):
        above = jit_archive._ScriptModule()
        above.attributes = {"a": module, "b": module}
        module = above
    with pytest.raises(ValueError, match="shared over and over"):
        jit_archive._flatten(module)
