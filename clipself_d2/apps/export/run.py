"""From a graph to a file, and from the file back to a function that is held against the model."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from clipself_d2.apps.export.graphs import Graph
from clipself_d2.parts.json_file import write_json

logger = logging.getLogger(__name__)

FORMATS = ("onnx", "torch_export", "torchscript")
OPSET = 18
# Largest difference from the model; boxes count in shares of the picture's longer side.
TOLERANCE = 1e-4
_SMALLEST_CELLS, _LARGEST_CELLS, _LARGEST_BATCH = 2, 512, 1024
Runner = Callable[..., list[Tensor]]


def export_graph(graph: Graph, output: Path, form: str, *, words: Sequence[str] = ()) -> float:
    """Write a model, hold it against what it was made of, and describe it.

    Args:
        graph: The model.
        output: File; beside it are written ``<output>.json``, which describes inputs and outputs,
            and, where there are words, ``<output>.words.npz``, the inputs that stand for them.
        form: One of ``FORMATS``.
        words: Classes or sentences.

    Returns:
        The largest difference from the model, over pictures, batches and vocabularies of several
        sizes.
    """
    if form == "torch_export" and graph.boxes:
        raise ValueError(
            "a detector chooses its boxes by branches on their values, which torch.export does "
            "not follow; take --format onnx or torchscript, or export its image tower"
        )
    if form == "onnx":
        _need("onnx", "onnxscript", "onnxruntime")
    output.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), warnings.catch_warnings():
        # Which Python values a trace keeps is checked below, on other sizes.
        warnings.simplefilter("ignore")
        _WRITERS[form](graph, output)
        difference = check_file(graph, output, form)
        if graph.embed is not None and words:
            arrays: dict[str, Any] = {n: part.numpy() for n, part in graph.embed(words).items()}
            np.savez(f"{output}.words.npz", names=np.array(list(words)), **arrays)
    write_json(Path(f"{output}.json"), _describe(graph, form, difference), indent=1)
    logger.info("%s: largest difference from the model %.1e", output, difference)
    return difference


def check_file(graph: Graph, path: Path, form: str) -> float:
    """Hold a file against the model on pictures and vocabularies that it was not made with."""
    run = open_file(path, form)
    worst = 0.0
    # The third example of a square graph has another side, which torch.export does not follow.
    for number in range(2 if form != "torchscript" and graph.square else 3):
        inputs = graph.example(number)
        expected = graph.module(*inputs)
        expected = [expected] if isinstance(expected, Tensor) else list(expected)
        got = run(*inputs)
        if graph.boxes:
            side = max(inputs[0].shape[-2:])
            expected[0], got[0] = expected[0] / side, got[0] / side
            worst = max(worst, _detection_difference(expected, got))
        else:
            worst = max(worst, *(_gap(*pair) for pair in zip(expected, got, strict=True)))
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{path} differs from the model by {worst:.1e} on pictures of other sizes, more than "
            f"{TOLERANCE:g}; this model cannot be exported as {form}"
        )
    return worst


def open_file(path: Path, form: str) -> Runner:
    """Load an exported model as a function from the inputs in order to the outputs."""
    if form == "onnx":
        return _open_onnx(path)
    loaded = (
        torch.jit.load(str(path)) if form == "torchscript" else torch.export.load(path).module()
    )

    def run(*inputs: Tensor) -> list[Tensor]:
        outputs = loaded(*inputs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


def _open_onnx(path: Path) -> Runner:
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options)

    def run(*inputs: Tensor) -> list[Tensor]:
        names = [entry.name for entry in session.get_inputs()]
        feed = {name: part.numpy() for name, part in zip(names, inputs, strict=True)}
        return [torch.from_numpy(part) for part in session.run(None, feed)]

    return run


def _write_onnx(graph: Graph, output: Path) -> None:
    if not graph.traced:
        names: dict[str, Any] = {
            "input_names": list(graph.inputs),
            "output_names": list(graph.outputs),
        }
        torch.onnx.export(_program(graph), f=output, external_data=False, verbose=False, **names)
        return
    axes = {
        name: {place: size for place, size in enumerate(dims) if isinstance(size, str)}
        for name, dims in graph.inputs.items()
    }
    # The exporter on top of torch.export does not follow the choice of boxes.
    torch.onnx.export(
        graph.module,
        graph.example(0),
        str(output),
        dynamo=False,
        opset_version=OPSET,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_axes=axes,
    )


def _write_torchscript(graph: Graph, output: Path) -> None:
    torch.jit.trace(graph.module, graph.example(0), check_trace=False).save(str(output))


def _program(graph: Graph) -> torch.export.ExportedProgram:
    sizes = {
        "batch": Dim("batch", min=1, max=_LARGEST_BATCH),
        "classes": Dim("classes", min=1, max=graph.most_classes),
    }
    for side in ("height", "width"):
        cells = Dim(f"{side}_cells", min=_SMALLEST_CELLS, max=_LARGEST_CELLS)
        sizes[side] = graph.multiple * cells
    if graph.multiple == 1:
        sizes |= {s: Dim(s, min=16, max=8192) for s in ("height", "width")}
    if graph.square:
        del sizes["height"], sizes["width"]
    shapes = tuple(
        {place: sizes[size] for place, size in enumerate(dims) if size in sizes}
        for dims in graph.inputs.values()
    )
    return torch.export.export(graph.module, graph.example(0), dynamic_shapes=shapes)


_WRITERS: Mapping[str, Callable[[Graph, Path], None]] = {
    "onnx": _write_onnx,
    "torch_export": lambda graph, output: torch.export.save(_program(graph), output),
    "torchscript": _write_torchscript,
}


def _describe(graph: Graph, form: str, difference: float) -> dict[str, object]:
    limit = {"most_classes": graph.most_classes} if "text" in graph.inputs else {}
    return {
        "format": form,
        "inputs": {name: list(dims) for name, dims in graph.inputs.items()},
        "outputs": list(graph.outputs),
        "height and width are multiples of": graph.multiple,
        **limit,
        "largest difference from the model": difference,
        **graph.about,
    }


def _gap(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    return float((expected.float() - got.float()).abs().max()) if expected.numel() else 0.0


def _detection_difference(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest distance to the nearest detection of the same class, both ways."""
    if len(expected[0]) != len(got[0]):
        return float("inf")
    if not len(expected[0]):
        return 0.0
    (boxes, scores, classes), (other_boxes, other_scores, other_classes) = expected[:3], got[:3]
    # (R, R) pairs: the farther of box and score counts, and another class is never near.
    apart = (boxes[:, None].float() - other_boxes[None].float()).abs().amax(-1)
    apart = torch.maximum(apart, (scores[:, None].float() - other_scores[None].float()).abs())
    apart = apart.masked_fill(classes[:, None] != other_classes[None], float("inf"))
    partners = apart.argmin(dim=1)
    gaps = [float(apart.amin(0).max()), float(apart.amin(1).max())]
    gaps += [_gap(one, other[partners]) for one, other in zip(expected[3:], got[3:], strict=True)]
    return max(gaps)


def _need(*names: str) -> None:
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ValueError(
                f"--format onnx needs {name}; install it by pip install 'clipself_d2[export]'"
            ) from error
