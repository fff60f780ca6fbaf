import csv
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from clipself_d2.apps.analysis.alignment_report import draw_accuracy, format_table, write_csv
from clipself_d2.apps.analysis.region_alignment import AlignmentRow
from clipself_d2.engine.cli import run_tool

TOOL = Path(__file__).parents[3] / "tools" / "analyze_region_alignment.py"
EMOJI = "ViT-Ti-8-emoji:emoji"
NAN = math.nan


def rows_of(tower: str, start: float) -> list[AlignmentRow]:
    rows = [AlignmentRow(tower, "crop", "", 64, "thing", 80.0, 90.0, 5)]
    rows.append(AlignmentRow(tower, "crop", "", 64, "stuff", NAN, NAN, 5))
    for size in (192, 96):
        for strategy, shift in (("clipself", 0.0), ("attention", -5.0)):
            score = start + shift + size / 8
            rows.append(AlignmentRow(tower, "roi", strategy, size, "thing", score, 99.5, 5))
            rows.append(AlignmentRow(tower, "roi", strategy, size, "stuff", NAN, NAN, 5))
            rows.append(AlignmentRow(tower, "mask", strategy, size, "thing", score, 99.5, 5))
            rows.append(AlignmentRow(tower, "roi", strategy, size, "thing.novel", 1.0, 2.0, 5))
    return rows


ROWS = [*rows_of("untouched", 10.0), *rows_of("student", 40.0)]


def test_the_csv_holds_every_row(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "new" / "a.csv")
    with (tmp_path / "new" / "a.csv").open(encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    assert len(read) == len(ROWS)
    for row, line in zip(ROWS, read, strict=True):
        assert (line["tower"], line["embedding"], line["split"]) == (
            row.tower,
            row.embedding,
            row.split,
        )
        assert int(line["size"]) == row.size
        np.testing.assert_allclose(float(line["macc1"]), row.macc1, atol=1e-3)
        np.testing.assert_allclose(float(line["macc5"]), row.macc5, atol=1e-3)


def test_the_table_puts_things_beside_stuff() -> None:
    lines = [[cell.strip() for cell in line.split("|")] for line in format_table(ROWS).split("\n")]
    # Two lines of header; of each tower crops, and two embeddings by two strategies by two sizes.
    assert len(lines) == 2 + 2 * 9
    assert ["", "untouched", "crop", "", "64", "80.0", "90.0", "nan", "nan", ""] in lines
    assert ["", "student", "roi", "clipself", "192", "64.0", "99.5", "nan", "nan", ""] in lines


def test_the_plot_has_a_color_for_every_tower(tmp_path: Path) -> None:
    draw_accuracy(ROWS, tmp_path / "two.png")
    draw_accuracy(rows_of("untouched", 10.0), tmp_path / "one.png")
    orange = np.array([round(255 * part) for part in colormaps["tab10"].colors[1]])
    for name, expected in (("two.png", True), ("one.png", False)):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        assert ((np.abs(pixels - orange).sum(-1) < 6).sum() > 100) == expected


def call(words: list[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """The tool's exit code, in this process."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words), "--device", "cpu"])
    tool = runpy.run_path(str(TOOL), run_name="tool")
    arguments = tool["parse_arguments"]()
    return run_tool(lambda: tool["analyze"](arguments), debug=arguments.debug)


def test_the_command_writes_csv_plot_and_table(
    emoji_data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    words = ["accuracy", "--dataset", "emoji_panoptic_val", "--towers", EMOJI, "--sizes", 64, 96]
    assert call([*words, "--limit", 2, "--output", tmp_path / "out"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert printed.count("| roi ") == 4
    assert printed.count("| crop ") == 1
    assert (tmp_path / "out" / "accuracy.csv").read_text().startswith("tower,embedding,form")
    assert Image.open(tmp_path / "out" / "accuracy.png").width > 600


def test_the_commands_draw_a_picture(emoji_data: Path, tmp_path: Path, monkeypatch) -> None:
    image = sorted((emoji_data / "emoji" / "val").glob("*.jpg"))[0]
    heat = ["heatmap", "--tower", EMOJI, "--words", "dog,police car", "--image", image]
    assert call([*heat, "--output", tmp_path / "heat.png"], monkeypatch) == 0
    parts = ["pca", "--towers", EMOJI, f"b={EMOJI}", "--image", image, "--size", 128]
    parts += ["--forms", "clipself", "attention"]
    assert call([*parts, "--output", tmp_path / "pca.png"], monkeypatch) == 0
    # Three panels beside one another; two rows of three.
    heat_size, parts_size = (Image.open(tmp_path / f"{n}.png").size for n in ("heat", "pca"))
    assert heat_size[0] == pytest.approx(parts_size[0], rel=0.15)
    assert parts_size[1] == pytest.approx(2 * heat_size[1], rel=0.15)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["accuracy", "--dataset", "mars", "--towers", EMOJI, "--sizes", 64], "--dataset mars"),
        (["accuracy", "--dataset", "mars", "--towers", "A", "--sizes", 64], "tower 'A' cannot"),
        (["heatmap", "--tower", EMOJI, "--words", " ,", "--image", "x.jpg"], "--words is empty"),
        (["heatmap", "--tower", EMOJI, "--words", "dog", "--image", "x.jpg"], "x.jpg does not"),
        (["pca", "--towers", "A:t:s:x", "--image", "x.jpg"], "'A:t:s:x' cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    words: list, complaint: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    assert call([*words, "--output", tmp_path / "x.png"], monkeypatch) == 1
    message = capsys.readouterr().err.strip().splitlines()
    assert message[-1].startswith("error: ")
    assert complaint in message[-1]
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["accuracy", "--dataset", "mars", "--towers", EMOJI, "--sizes", 0], "--sizes: '0' is no"),
        (["pca", "--towers", EMOJI, "--image", "x.jpg", "--size", -1], "--size: '-1' is no"),
    ],
)
def test_flags_out_of_range_are_refused(
    words: list, complaint: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    with pytest.raises(SystemExit) as end:
        call([*words, "--output", tmp_path / "x.png"], monkeypatch)
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err
