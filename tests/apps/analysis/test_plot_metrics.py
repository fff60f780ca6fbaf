"""Curves of runs."""

import json
from pathlib import Path

import pytest

from clipself_d2.apps.analysis.plot_metrics import plot_metrics, read_metrics


def write(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text("\n".join(lines))
    return folder


def test_a_run_that_went_on_counts_once(tmp_path: Path) -> None:
    rows = [json.dumps({"iteration": i, "loss": v, "time": 1}) for i, v in ((1, 3), (2, 2), (1, 9))]
    run = write(tmp_path / "a", *rows, '{"iteration": 3, "lo')
    assert read_metrics(run) == {"loss": [(1, 9.0), (2, 2.0)]}


def test_metrics_of_one_run_alone_are_drawn(tmp_path: Path) -> None:
    first = write(tmp_path / "a", '{"iteration": 1, "loss": 1, "bbox/AP": NaN}')
    second = write(tmp_path / "b", '{"iteration": 1, "loss_cls": 1}')
    assert plot_metrics([first, second], tmp_path / "m.png") == ["loss", "loss_cls"]
    assert plot_metrics([first, second], tmp_path / "m.png", ["loss_"]) == ["loss_cls"]
    with pytest.raises(ValueError, match="no metric begins with x; there are loss, loss_cls"):
        plot_metrics([first, second], tmp_path / "m.png", ["x"])


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the OUTPUT_DIR of a training run"):
        read_metrics(tmp_path)
