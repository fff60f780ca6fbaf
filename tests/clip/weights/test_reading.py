import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipself_d2.clip.weights.reading import read_weights_file

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def write(path, kind):
    if kind == "safetensors":
        save_file(STATE, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({k: v.numpy() for k, v in STATE.items()}, 2))
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("safetensors", "a.safetensors"),
        ("pickle", "a.pkl"),
        ("pickle", "a.pth"),
        ("zip", "a.pth"),
        ("zip", "a.pkl"),
        ("older", "a.pth"),
        ("older", "a.tar"),
    ],
)
def test_kind_is_told_by_the_content(tmp_path, kind, name):
    """The name decides for safetensors alone."""
    write(tmp_path / name, kind)
    found = read_weights_file(tmp_path / name)
    assert set(found) == set(STATE)
    for key, value in STATE.items():
        assert torch.equal(torch.as_tensor(found[key]), value)


def test_numbers_of_numpy_beside_tensors_are_read(tmp_path):
    """Trainers keep their best score as one."""
    file = tmp_path / "a.pth"
    torch.save({"model": STATE, "best": np.float64(41.5), "epoch": np.int32(3)}, file)
    found = read_weights_file(file)
    assert (found["best"], found["epoch"]) == (41.5, 3)


def test_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    file = tmp_path / "bomb.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match="would unpack to 50000"):
        read_weights_file(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("kind", ["zip", "older", "pickle", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_cut_file_is_one_sentence(tmp_path, kind, kept):
    file = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    write(file, kind)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="may be cut short") as caught:
        read_weights_file(file)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_class_of_its_own_is_named_without_advice_to_run_it(tmp_path, zipped):
    file = tmp_path / "a.pth"
    torch.save({"a": torch.nn.Linear(1, 1)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="asks for torch.nn.modules.linear.Linear") as caught:
        read_weights_file(file)
    assert "weights_only" not in str(caught.value)


def test_forged_header_is_refused(tmp_path):
    file = tmp_path / "a.safetensors"
    header = {"weight": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_weights_file(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_weights_file(tmp_path / "absent.pth")
