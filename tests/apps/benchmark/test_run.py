import json
import logging
import runpy
import sys
from pathlib import Path

import pytest

from clipself_d2.apps.benchmark.run import (
    PARTS,
    make_options,
    run_benchmark,
    tables,
    write_report,
)

ROOT = Path(__file__).resolve().parents[3]
CHOICE = {
    "device": "cpu",
    "model": "ViT-Ti-8-emoji",
    "sizes": None,
    "precision": "auto",
    "repeats": 1,
    "text_classes": None,
    "scale": 0.1,
    "reference": False,
}


def test_defaults_fit_the_device() -> None:
    options = make_options(**CHOICE)
    assert options.sizes == (384, 256)
    assert options.text_classes == 2
    assert make_options(**{**CHOICE, "sizes": [64]}).sizes == (64,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeats": 0}, "--repeats is 0"),
        ({"sizes": [64, 0]}, "--size is 0"),
        ({"precision": "int8"}, "precision is 'int8'"),
        ({"model": "ViT-B-61"}, "'ViT-B-61' is no model of open_clip"),
    ],
)
def test_bad_choices_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_options(**{**CHOICE, **change})


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="--device is cuda, but torch finds no GPU"):
        make_options(**{**CHOICE, "device": "cuda"})
    assert make_options(**{**CHOICE, "device": None}).device == "cpu"


def test_a_report_is_a_table_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PARTS, "text", lambda options: [{"variant": "ours", "speed ratio": 2.5678}])
    level = logging.getLogger("clipself_d2.evaluation").level
    report = run_benchmark(["text"], make_options(**CHOICE))
    assert logging.getLogger("clipself_d2.evaluation").level == level
    assert set(report) == {"machine", "options", "text"}
    text = tables(report)
    assert "## text" in text
    assert "| ours      |         2.568 |" in text
    assert "## distill" not in text
    write_report(report, tmp_path / "new" / "report.json")
    assert json.loads((tmp_path / "new" / "report.json").read_text())["text"] == report["text"]


def test_the_tool_prints_the_table_and_writes_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    flags = ["--model", "ViT-Ti-8-emoji", "--classes", "1", "--repeats", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "text", *flags, "--output", str(file)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "benchmark.py"), run_name="__main__")
    assert end.value.code == 0
    assert "## text" in capsys.readouterr().out
    assert [row["variant"] for row in json.loads(file.read_text())["text"]] == [
        "one by one",
        "ours",
    ]
