import json
import logging
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clipself_d2.apps.benchmark import measure
from clipself_d2.apps.benchmark.measure import BenchmarkOptions
from clipself_d2.apps.benchmark.run import PARTS, run_benchmark, tables
from clipself_d2.apps.benchmark.vocabulary import HEAD_REGIONS

ROOT = Path(__file__).resolve().parents[3]
TINY = BenchmarkOptions(
    model="ViT-Ti-8-emoji",
    sizes=(96,),
    cases=(("ViT-Ti-8-emoji", 96),),
    batches=(2,),
    precision="fp32",
    repeats=1,
    num_crops=3,
    regions=(4, 4),
    scale=0.001,
    text_classes=1,
    class_counts=(5, 50),
    isolated=False,
)


def test_distillation_compares_with_the_published_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PEAK_SIDE", {"cpu": 64})
    rows = PARTS["distill"](replace(TINY, compile_modes=("off",)))
    assert [(row["variant"], row["images"]) for row in rows] == [
        ("published", 2),
        ("ours, off", 2),
    ]
    assert rows[0]["speed ratio"] == rows[0]["peak ratio"] == 1
    # The last block's attention that is thrown away costs products.
    assert rows[0]["GFLOP"] > rows[1]["GFLOP"] > 0
    assert rows[0]["launches"] > rows[1]["launches"] > 100


def test_no_case_begins_after_the_minutes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "_PEAK_SIDE", {"cpu": 64})
    assert PARTS["distill"](replace(TINY, minutes=-1.0)) == []
    assert "left out: [('ViT-Ti-8-emoji', 96, 2)]" in caplog.text


@pytest.mark.slow
def test_detector_rows_tell_passes_and_ratios() -> None:
    rows = PARTS["detector"](replace(TINY, compile_modes=("off",)))
    assert [row["task"] for row in rows[::2]] == ["training", "inference"]
    for careless, ours in zip(rows[::2], rows[1::2], strict=True):
        assert careless["speed ratio"] == 1
        assert (careless["tower passes"], ours["tower passes"]) == (2, 1)
        assert ours["saved MiB"] == 0


def test_both_scorers_agree_on_the_made_up_detections() -> None:
    pytest.importorskip("lvis")
    reference, ours = PARTS["evaluation"](replace(TINY, reference=True))
    assert (reference["scorer"], ours["scorer"]) == ("lvis", "hotcoco")
    assert (ours["images"], ours["detections"], ours["classes"]) == (20, 450, 1203)
    assert 10 < ours["AP"] < 90
    assert ours["AP"] == pytest.approx(reference["AP"], abs=1e-9)
    assert ours["APr"] == pytest.approx(reference["APr"], abs=1e-9, nan_ok=True)
    assert reference["speed ratio"] == 1


def test_one_by_one_gives_the_embeddings_of_batches() -> None:
    one_by_one, ours = PARTS["text"](TINY)
    assert ours["prompts"] == 126
    assert ours["largest difference"] < 1e-5
    assert one_by_one["speed ratio"] == 1


def test_every_class_count_has_a_row_for_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in HEAD_REGIONS:
        monkeypatch.setitem(HEAD_REGIONS, task, 16)
    rows = PARTS["classes"](TINY)
    assert [(row["task"], row["classes"]) for row in rows] == [
        *(("training", 5), ("training", 50)),
        *(("inference", 5), ("inference", 50)),
    ]
    assert rows[0]["time ratio"] == rows[2]["time ratio"] == 1


def test_a_report_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "text", lambda options: [{"variant": "ours", "speed ratio": 2.5678}])
    level = logging.getLogger("clipself_d2.evaluation").level
    report = run_benchmark(["text"], TINY)
    assert logging.getLogger("clipself_d2.evaluation").level == level
    text = tables(report)
    assert "| ours      |         2.568 |" in text
    assert "## distill" not in text


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
    report = json.loads(file.read_text())
    assert [row["variant"] for row in report["text"]] == ["one by one", "ours"]
    assert report["options"]["sizes"] == [384, 256]
