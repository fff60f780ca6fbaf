"""Exported files are timed beside the model."""

import pytest

from clipself_d2.apps.benchmark.exported import export_rows
from clipself_d2.apps.benchmark.measure import BenchmarkOptions


@pytest.mark.slow
def test_every_format_has_a_row_with_its_size() -> None:
    pytest.importorskip("onnxruntime")
    rows = export_rows(BenchmarkOptions(model="ViT-Ti-8-emoji", sizes=(64,), repeats=1))
    found = [(row["model"], row["format"]) for row in rows]
    tower = [("ViT-Ti-8-emoji", form) for form in ("eager", "onnx", "torch_export", "torchscript")]
    assert found[:4] == tower
    assert [form for _, form in found[4:]] == ["eager", "onnx", "torchscript"]
    assert all(row["speed ratio"] == 1 for row in rows if row["format"] == "eager")
    # Image tower and detector of the emoji world, in fp32.
    assert all(4 < float(str(row["MB"])) < 15 for row in rows)
