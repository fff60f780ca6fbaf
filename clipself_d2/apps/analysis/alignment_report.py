"""The figures of a region analysis as a file, a table and a plot."""

import csv
import logging
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from tabulate import tabulate

from clipself_d2.apps.analysis.region_alignment import (
    AlignmentOptions,
    AlignmentRow,
    measure_alignment,
)
from clipself_d2.apps.analysis.tower_spec import TowerSpec

logger = logging.getLogger(__name__)

CSV_FILE, PLOT_FILE = "accuracy.csv", "accuracy.png"
HEADERS = ("tower", "embedding", "form", "px", "thing 1", "thing 5", "stuff 1", "stuff 5")
PANELS = (
    ("roi", "thing", "boxes of things"),
    ("mask", "thing", "masks of things"),
    ("roi", "stuff", "boxes of stuff"),
    ("mask", "stuff", "masks of stuff"),
)
# Line styles of the forms of dense features, in the order that is asked for.
STYLES = ("o-", "s--", "^-.", "d:")


def report_accuracy(
    dataset_name: str, specs: Sequence[TowerSpec], options: AlignmentOptions, output_dir: Path
) -> str:
    """Measure towers, and write accuracy.csv, accuracy.png and the table that is returned."""
    rows = measure_alignment(dataset_name, specs, options)
    write_csv(rows, output_dir / CSV_FILE)
    draw_accuracy(rows, output_dir / PLOT_FILE)
    logger.info("figures in %s, plot in %s", output_dir / CSV_FILE, output_dir / PLOT_FILE)
    return format_table(rows)


def write_csv(rows: Sequence[AlignmentRow], path: Path) -> None:
    """Write the figures with a header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, AlignmentRow._fields, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            figures = {"macc1": f"{row.macc1:.3f}", "macc5": f"{row.macc5:.3f}"}
            writer.writerow(row._asdict() | figures)


def format_table(rows: Sequence[AlignmentRow]) -> str:
    """Lay out things beside stuff, in Markdown: a line for each tower, embedding, form and size."""
    lines: dict[tuple[object, ...], dict[str, list[float | str]]] = {}
    for row in rows:
        cells = lines.setdefault(row[:4], {})
        if row.split in ("thing", "stuff"):
            cells[row.split] = [row.macc1, row.macc5]
    empty: dict[str, list[float | str]] = {"thing": ["", ""], "stuff": ["", ""]}
    table = [
        [*key, *(v for vs in (empty | cells).values() for v in vs)] for key, cells in lines.items()
    ]
    return str(tabulate(table, HEADERS, tablefmt="pipe", floatfmt=".1f"))


def draw_accuracy(rows: Sequence[AlignmentRow], path: Path) -> None:
    """Draw top-1 accuracy over the input size: crops as a level line, dense features as curves."""
    towers = list(dict.fromkeys(row.tower for row in rows))
    forms = list(dict.fromkeys(row.form for row in rows if row.form))
    colors = colormaps["tab10"].colors  # type: ignore[attr-defined]
    columns = min(3, len(towers))
    height = 5.6 + 0.55 * -(-len(towers) // columns)
    figure = Figure(figsize=(9, height), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (embedding, split, title) in zip(grid.flat, PANELS, strict=True):
        for number, tower in enumerate(towers):
            color = colors[number % len(colors)]
            own = [row for row in rows if row.tower == tower and row.split == split]
            for row in own:
                if row.embedding == "crop":
                    axes.axhline(
                        row.macc1, color=color, ls=":", lw=1.6, label=f"{tower}, image crops"
                    )
            for form, style in zip(forms, cycle(STYLES), strict=False):
                curve = sorted(
                    (row.size, row.macc1)
                    for row in own
                    if (row.embedding, row.form) == (embedding, form)
                )
                label = f"{tower}, dense, form {form}"
                axes.plot(*zip(*curve, strict=True), style, color=color, ms=4, label=label)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
    grid[0, 0].set_ylim(-3, 103)
    grid[0, 0].set_xticks(sorted({row.size for row in rows if row.embedding != "crop"}))
    for axes in grid[1]:
        axes.set_xlabel("longest side of the input, px")
    for axes in grid[:, 0]:
        axes.set_ylabel("top-1, mean over classes, %")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
