"""Exported files say what the model says, for other sizes, batches and vocabularies."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipself_d2.apps.export import graphs
from clipself_d2.apps.export.graphs import Graph, model_graph, tower_graph
from clipself_d2.apps.export.run import TOLERANCE, export_graph, open_file
from clipself_d2.clip import load_tower
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer

DETECTORS = ("fvit_untouched", "fvit_masks", "cascade", "retinanet", "fcos")


def graph_of(name: str, *overrides: str) -> Graph:
    torch.manual_seed(0)
    cfg = load_config(f"configs/emoji/{name}.yaml", ["MODEL.CLIP.WEIGHTS", "", *overrides])
    return model_graph(Trainer.build_model(cfg).eval(), cfg)


def test_a_tower_runs_on_other_sizes_and_batches(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    graph = tower_graph(load_tower("ViT-Ti-8-emoji", "emoji"), (2, 5))
    path = tmp_path / "tower.onnx"
    assert export_graph(graph, path, "onnx") <= TOLERANCE
    about = json.loads(Path(f"{path}.json").read_text())
    assert about["outputs"] == ["dense", "block2", "block5"]
    run = open_file(path, "onnx")
    for batch, height, width in ((1, 64, 96), (2, 64, 96), (1, 128, 64), (2, 128, 64)):
        images = torch.rand(batch, 3, height, width) * 255
        with torch.no_grad():
            expected = graph.module(images)
        for one, other in zip(expected, run(images), strict=True):
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)


def test_words_change_without_another_export(tmp_path: Path) -> None:
    graph = graph_of("fvit_untouched")
    path = tmp_path / "fvit.pt"
    assert export_graph(graph, path, "torchscript", words=["dog", "police car"]) <= TOLERANCE
    words = np.load(f"{path}.words.npz")
    assert words["names"].tolist() == ["dog", "police car"]
    run, (image, _, _) = open_file(path, "torchscript"), graph.example(1)
    both = run(image, torch.from_numpy(words["text"]), torch.from_numpy(words["base"]))
    one = run(image, torch.from_numpy(words["text"][:1]), torch.from_numpy(words["base"][:1]))
    assert set(both[2].tolist()) == {0, 1}
    assert set(one[2].tolist()) == {0}


def test_what_says_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A length that the trace takes for a constant.
    monkeypatch.setattr(graphs, "_COUNTING", ())
    with pytest.raises((ValueError, RuntimeError)):
        export_graph(graph_of("fvit_untouched"), tmp_path / "a.pt", "torchscript")


def test_models_that_cannot_be_exported_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OpenVocabPanoptic of this config cannot be exported"):
        graph_of("ov_panoptic_untouched")
    with pytest.raises(ValueError, match=r"which torch\.export does not follow"):
        export_graph(graph_of("fvit_untouched"), tmp_path / "a.pt2", "torch_export")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", [*DETECTORS, "catseg_untouched", "cris"])
def test_every_model_says_the_same(name: str, form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    assert export_graph(graph_of(name), tmp_path / "model", form) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["catseg_untouched", "cris"])
def test_segmentors_are_programs_of_torch_export(name: str, tmp_path: Path) -> None:
    assert export_graph(graph_of(name), tmp_path / "model.pt2", "torch_export") <= TOLERANCE
