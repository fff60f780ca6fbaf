"""Curves of runs from their metrics.json, side by side."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRICS_FILE = "metrics.json"
_COLUMNS, _MOST = 4, 24
# Clocks and counters that no one compares.
_LEFT_OUT = ("iteration", "eta_seconds", "time", "data_time", "rank_data_time")


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read (iteration, value) by metric from an OUTPUT_DIR; what a run repeated is overwritten."""
    path = folder / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the OUTPUT_DIR of a training run")
    curves: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a kill has cut it
        for name, value in row.items():
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if is_number and name not in _LEFT_OUT:
                # A run that was resumed writes an iteration again: the later value counts.
                curves.setdefault(name, {})[int(row["iteration"])] = float(value)
    return {name: sorted(points.items()) for name, points in sorted(curves.items())}


def plot_metrics(folders: Sequence[Path], output: Path, only: Sequence[str] = ()) -> list[str]:
    """Draw every metric of some runs, by OUTPUT_DIR, and return the metrics' names.

    ``only`` are beginnings of the names that are drawn; () draws all, 24 at most.
    """
    runs = {folder: read_metrics(folder) for folder in folders}
    known = sorted({name for curves in runs.values() for name in curves})
    names = [name for name in known if not only or name.startswith(tuple(only))][:_MOST]
    if not names:
        raise ValueError(f"no metric begins with {', '.join(only)}; there are {', '.join(known)}")
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False)
    for place, name in zip(axes.flat, names, strict=False):
        for folder, curves in runs.items():
            points = curves.get(name, [])
            steps, values = [step for step, _ in points], [value for _, value in points]
            place.plot(steps, values, marker=".", label=folder.name)
        place.set_title(name)
    for place in axes.flat[len(names) :]:
        place.set_axis_off()
    axes.flat[0].legend()
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)
    plt.close(figure)
    return names
