import contextlib
import pickle
import warnings

import pytest
import torch
import yaml

from clipself_d2.apps.reliability import planted_files as files

# Opcodes of Python 2 classes and dotted names need more than one call to do harm.
INERT = {"dotted name.pkl", "attributes set.pkl"}


def marker_after(read, file, marker):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):
            read(file)
    return marker.exists()


def unpickle(file):
    with file.open("rb") as stream:
        return pickle.load(stream, encoding="latin1")


@pytest.mark.parametrize("kind", [k for k in files.WEIGHTS if k.endswith(".pkl")])
def test_planted_pickles_do_run_under_a_careless_reader(tmp_path, kind):
    """An attack that could not succeed would show nothing."""
    file, marker = tmp_path / "a", tmp_path / "ran"
    files.WEIGHTS[kind](file, marker)
    assert marker_after(unpickle, file, marker) is (kind not in INERT)


@pytest.mark.parametrize("kind", ["weights.pth", "trainer.pth", "older form.pth", "plain.pt"])
def test_planted_files_of_torch_do_run_under_a_careless_reader(tmp_path, kind):
    file, marker = tmp_path / "a", tmp_path / "ran"
    files.WEIGHTS[kind](file, marker)
    assert marker_after(lambda path: torch.load(path, weights_only=False), file, marker)


@pytest.mark.parametrize("kind", files.YAML_VALUES)
def test_planted_yaml_does_run_under_a_careless_reader(tmp_path, kind):
    """Names and modules are the first half of a call; large numbers take time, not a folder."""
    file, marker = tmp_path / "a.yaml", tmp_path / "ran"
    files.planted_yaml(files.YAML_VALUES[kind])(file, marker)
    inert = {"a name", "a module", "an object", "eval of an attribute", "eval with names"}
    if kind in {"eval of a large power", "eval of a long list"}:
        return
    ran = marker_after(lambda path: yaml.unsafe_load(path.read_text()), file, marker)
    assert ran is (kind not in inert)


def test_other_planted_files_do_run_under_a_careless_reader(tmp_path):
    writers = {"a.p": files.reference_file, "b.p": files.proposal_file}
    for name, write in writers.items():
        write(tmp_path / name, tmp_path / f"{name} ran")
        assert marker_after(unpickle, tmp_path / name, tmp_path / f"{name} ran")
