import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipself_d2.apps.emoji import report
from clipself_d2.apps.emoji.report import (
    best_boxes,
    draw_boxes,
    draw_curves,
    draw_detections,
    format_table,
)

SUMMARY = {
    "crop_macc": 90.0,
    "dense_macc_before": 2.0,
    "dense_macc_after": 50.5,
    "ap50_novel_before": 3.0,
    "ap50_novel_after": 30.25,
    "ap50_base_before": 20.0,
    "ap50_base_after": 33.0,
    "ap50_all_before": 17.0,
    "ap50_all_after": 31.0,
    "minutes": {"total": 9.5},
}


def colors(path: Path) -> int:
    return len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0))


def test_the_table_shows_every_pair() -> None:
    table = format_table(SUMMARY)
    for value in ("90.0", "2.0", "50.5", "30.2", "33.0", "17.0", "31.0", "9.5 minutes"):
        assert value in table


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    rows = [
        {"iteration": step, "total_loss": 1 / (step + 1), "distill/constant_loss": 0.4}
        for step in range(5)
    ]
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(row) for row in rows))
    draw_curves(SUMMARY, tmp_path / "metrics.json", tmp_path)
    assert colors(tmp_path / "curves.png") > 20


def test_boxes_of_novel_and_base_classes_have_their_colors() -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    box = {"bbox": [10, 10, 40, 30], "category_id": 1, "score": 0.9}
    base = draw_boxes(pixels, [box], {1: "dog"}, set()).reshape(-1, 3).astype(int)
    novel = draw_boxes(pixels, [box], {1: "dog"}, {"dog"}).reshape(-1, 3).astype(int)
    assert (base[:, 1] - base[:, 0]).max() > 60
    assert (novel[:, 0] - novel[:, 1]).max() > 60
    assert (base[:, 0] - base[:, 1]).max() < 30
    assert (novel[:, 1] - novel[:, 0]).max() < 30


def test_no_box_leaves_the_picture_alone() -> None:
    pixels = np.full((10, 12, 3), 7, np.uint8)
    drawn = draw_boxes(pixels, [], {}, set())
    assert drawn.shape[0] >= 10
    assert set(np.unique(drawn)) == {7}


def test_detections_are_drawn_beside_the_ground_truth(
    emoji_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "NUM_PICTURES", 1)
    truth = json.loads((emoji_data / "emoji/annotations/instances_val.json").read_text())
    rows = [{**row, "score": 0.8} for row in truth["annotations"]]
    for name in ("before", "after"):
        folder = tmp_path / name / "inference" / "emoji_ov_val"
        folder.mkdir(parents=True)
        (folder / "coco_instances_results.json").write_text(json.dumps(rows))
    output = tmp_path / "detections.png"
    draw_detections(emoji_data / "emoji", tmp_path / "before", tmp_path / "after", output)
    assert colors(output) > 500
    width, height = Image.open(output).size
    assert width > 800
    assert height > 200


def test_a_missing_detection_file_is_an_error(emoji_data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="coco_instances_results"):
        draw_detections(emoji_data / "emoji", tmp_path, tmp_path, tmp_path / "x.png")


def test_the_best_box_of_a_place_is_drawn_and_as_many_as_are_asked_for() -> None:
    def box(x: float, score: float, kind: int = 1) -> dict:
        return {"bbox": [x, 0.0, 10.0, 10.0], "category_id": kind, "score": score}

    stacked, apart, weak = [box(0, 0.05), box(1, 0.04, 2)], box(30, 0.03), box(60, 0.01)
    assert best_boxes([weak, *stacked[::-1], apart], 2) == [stacked[0], apart]
    assert best_boxes([], 2) == []
