"""Exported files against the model that they were made of."""

import importlib.util
import logging
import tempfile
from pathlib import Path

import torch

from clipself_d2.apps.benchmark.measure import BenchmarkOptions, Row, Step, median_seconds
from clipself_d2.apps.export.graphs import Graph, model_graph, tower_graph
from clipself_d2.apps.export.run import FORMATS, export_graph, open_file
from clipself_d2.apps.predict.detector_source import build_detector
from clipself_d2.clip import load_tower
from clipself_d2.parts.recipe_files import get_config_file
from clipself_d2.parts.shipped_weights import PREFIX

logger = logging.getLogger(__name__)

_DETECTOR = "emoji/fvit_clipself"
MB = 1e6


def export_rows(options: BenchmarkOptions) -> list[Row]:
    """Time an image tower and a detector, eager and in every format that they have, on a CPU."""
    torch.manual_seed(0)
    cpu = ["MODEL.DEVICE", "cpu"]
    recipe = get_config_file(f"{_DETECTOR}.yaml")
    source = build_detector(recipe, f"{PREFIX}{_DETECTOR}.pth", cpu)
    graphs = {
        options.model: tower_graph(load_tower(options.model)),
        "F-ViT, emoji": model_graph(source.model, source.cfg),
    }
    return [row for name, graph in graphs.items() for row in _rows(name, graph, options)]


def _rows(name: str, graph: Graph, options: BenchmarkOptions) -> list[Row]:
    forms = [form for form in FORMATS if not (graph.boxes and form == "torch_export")]
    if importlib.util.find_spec("onnxruntime") is None:
        logger.warning("onnxruntime is not installed; the export is timed without it")
        forms.remove("onnx")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        endings = {"torch_export": "pt2"}
        files = {form: Path(folder) / f"model.{endings.get(form, form)}" for form in forms}
        for form, path in files.items():
            export_graph(graph, path, form)
        runners = {form: open_file(path, form) for form, path in files.items()}
        weights = {*graph.module.parameters(), *graph.module.buffers()}
        sizes = {"eager": sum(part.numel() * part.element_size() for part in weights)}
        sizes |= {form: path.stat().st_size for form, path in files.items()}
        for side in options.sizes:
            first, *others = graph.example(0)
            inputs = (255 * torch.rand(*_one(first), side, side), *others)
            steps: dict[str, Step] = {
                form: (lambda run=run, inputs=inputs: run(*inputs))  # type: ignore[misc]
                for form, run in {"eager": graph.module, **runners}.items()
            }
            seconds = median_seconds(steps, options.repeats, "cpu")
            rows += [
                {
                    "model": name,
                    "size": side,
                    "format": form,
                    "ms": 1000 * seconds[form],
                    "speed ratio": seconds["eager"] / seconds[form],
                    "MB": sizes[form] / MB,
                }
                for form in steps
            ]
    return rows


def _one(images: torch.Tensor) -> tuple[int, ...]:
    """Shape of one picture without its sides, of a batch of one where there are batches."""
    return (1, 3) if images.ndim == 4 else (3,)
