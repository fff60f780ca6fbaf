import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.resnet import BasicStem
from safetensors.torch import save_file
from torch import nn

from clipself_d2.parts.checkpointer import SafeCheckpointer

WEIGHT = np.arange(8, dtype=np.float32).reshape(2, 4)
BIAS = np.array([1.0, 2.0], np.float32)


def check_as_detectron2(model: nn.Module, file: Path) -> dict:
    """Load by both checkpointers; the weights and what is left over are the same."""
    states, rests = [], []
    for kind in (DetectionCheckpointer, SafeCheckpointer):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        rests.append(kind(model).load(str(file)))
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    assert rests[0] == rests[1]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert any(value.any() for value in states[1].values())
    return rests[1]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickle_of_the_model_zoo(tmp_path, protocol):
    file = tmp_path / "model_final.pkl"
    content = {"model": {"weight": WEIGHT, "bias": BIAS}, "__author__": "Detectron2 Model Zoo"}
    file.write_bytes(pickle.dumps(content, protocol))
    check_as_detectron2(nn.Linear(4, 2), file)


def test_matching_heuristics_of_torchvision(tmp_path):
    file = tmp_path / "R-50.pkl"
    content = {"model": {"weight": WEIGHT, "bias": BIAS}, "__author__": "torchvision"}
    file.write_bytes(pickle.dumps({**content, "matching_heuristics": True}, 2))
    check_as_detectron2(nn.Sequential(nn.Linear(4, 2)), file)


@pytest.mark.parametrize("wrapped", [True, False])
def test_blobs_of_caffe2_are_renamed(tmp_path, wrapped):
    file = tmp_path / "R-50.pkl"
    blobs = {
        "conv1_w": np.random.default_rng(0).normal(size=(64, 3, 7, 7)).astype(np.float32),
        "res_conv1_bn_s": np.ones(64, np.float32),
        "res_conv1_bn_b": np.zeros(64, np.float32),
        "conv1_w_momentum": np.zeros(1, np.float32),
    }
    file.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "A: 1"} if wrapped else blobs, 2))
    check_as_detectron2(nn.ModuleDict({"stem": BasicStem(3, 64, "FrozenBN")}), file)


def test_file_of_pycls(tmp_path):
    file = tmp_path / "RegNet.pyth"
    state = {"weight": torch.tensor(WEIGHT), "bias": torch.tensor(BIAS)}
    state["num_batches_tracked"] = torch.tensor(3)
    torch.save({"model_state": state}, file)
    check_as_detectron2(nn.Linear(4, 2), file)


def test_checkpoint_of_training_keeps_what_is_beside_the_weights(tmp_path):
    file = tmp_path / "model_0000009.pth"
    state = {"weight": torch.tensor(WEIGHT), "bias": torch.tensor(BIAS)}
    torch.save({"model": state, "iteration": 9, "score": np.float64(0.5)}, file)
    model = nn.Linear(4, 2)
    assert SafeCheckpointer(model).load(str(file)) == {"iteration": 9, "score": 0.5}
    assert torch.equal(model.weight, state["weight"])


def test_safetensors_and_query_are_read(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"0.weight": torch.tensor(WEIGHT), "0.bias": torch.tensor(BIAS)}, file)
    model = nn.ModuleDict({"head": nn.Sequential(nn.Linear(4, 2))})
    SafeCheckpointer(model).load(f"{file}?matching_heuristics=True")
    assert model["head"][0].weight.tolist() == WEIGHT.tolist()


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.pyth"])
def test_code_is_refused(tmp_path, name):
    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    file = tmp_path / name
    file.write_bytes(pickle.dumps({"model": {"weight": Planted()}, "__author__": "me"}, 2))
    with pytest.raises(ValueError, match="asks for posix.mkdir"):
        SafeCheckpointer(nn.Linear(4, 2)).load(str(file))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], "text", {}])
@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.pyth"])
def test_other_content_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match=r"holds (list|str|dict), expected named tensors"):
        SafeCheckpointer(nn.Linear(4, 2)).load(str(tmp_path / name))
