"""What a quickstart shows at its end: a table, curves, and detections side by side."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from torchvision.ops import nms

Summary = dict[str, Any]

BASE_COLOR = (0.16, 0.75, 0.25)
NOVEL_COLOR = (0.95, 0.2, 0.2)
DRAW_SCALE = 2.0
NUM_PICTURES = 4
# Objects of a picture whose labels have room.
FEW = 5
# Of boxes that overlap more, the best is drawn.
MAX_IOU = 0.2


class Box(TypedDict):
    """One box to draw: ``bbox`` XYWH px, ``category_id`` of the file, ``score`` in [0, 1]."""

    bbox: list[float]
    category_id: int
    score: float


def format_table(summary: Summary) -> str:
    """Lay the figures of ``summary.json`` out as text, in percent."""
    crop = summary["crop_macc"]
    rows = [["region top-1, teacher on image crops", crop, crop]]
    rows.append(["region top-1, dense features", *_pair(summary, "dense_macc")])
    for split in ("novel", "base", "all"):
        rows.append([f"detection AP50, {split}", *_pair(summary, f"ap50_{split}")])
    table = tabulate(rows, headers=["%", "untouched", "distilled"], floatfmt=".1f")
    return f"{table}\n{summary['minutes']['total']:.1f} minutes in all"


def _pair(summary: Summary, key: str) -> tuple[float, float]:
    return summary[f"{key}_before"], summary[f"{key}_after"]


def draw_curves(summary: Summary, metrics_file: Path, output_dir: Path) -> None:
    """Draw the distillation's loss, of metrics.json, and the figures before and after it."""
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    rows = [row for row in rows if "total_loss" in row]
    figure = Figure(figsize=(12, 3.6))
    left, middle, right = figure.subplots(1, 3)
    steps = [row["iteration"] for row in rows]
    left.plot(steps, [row["total_loss"] for row in rows], label="student")
    constant = [row.get("distill/constant_loss") for row in rows]
    if all(value is not None for value in constant):
        left.plot(steps, constant, "--", color="gray", label="best constant")
    left.set(title="distillation loss, 1 - cosine", xlabel="iteration", ylim=(0, None))
    left.legend()
    _bars(middle, [("dense features", *_pair(summary, "dense_macc"))])
    # The untouched CLIP embeds each crop as a picture; that is what the student learns from.
    crop = summary["crop_macc"]
    middle.axhline(crop, color="gray", linestyle="--", label=f"teacher on crops, {crop:.1f}")
    middle.legend(fontsize=8, loc="center right")
    middle.set(title="region top-1, %", xlim=(-0.6, 1.4), ylim=(0, 100))
    splits = ("novel", "base", "all")
    _bars(right, [(split, *_pair(summary, f"ap50_{split}")) for split in splits])
    right.set_title("detection AP50, %")
    figure.tight_layout()
    figure.savefig(output_dir / "curves.png", dpi=110)


def _bars(axes: Axes, groups: Sequence[tuple[str, float, float]]) -> None:
    position = np.arange(len(groups))
    for shift, label, color, column in (
        (-0.2, "untouched", "#9aa5b1", 1),
        (0.2, "distilled", "#2a7f62", 2),
    ):
        bars = axes.bar(
            position + shift, [group[column] for group in groups], 0.4, label=label, color=color
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set_xticks(position, [group[0] for group in groups])
    axes.legend(fontsize=8)
    axes.margins(y=0.15)


def draw_detections(data_dir: Path, before_dir: Path, after_dir: Path, output: Path) -> None:
    """Draw ground truth and the detections of two detectors side by side.

    Pictures are the first of the validation set with a novel object and few objects. Scores of two
    detectors have two scales, so that of each the best boxes are drawn, as many as there are
    objects. Novel classes are red and marked with an asterisk.

    Args:
        data_dir: Folder of the data set with ``annotations/instances_val.json``.
        before_dir: OUTPUT_DIR of the first detector.
        after_dir: OUTPUT_DIR of the second.
        output: Picture to write.
    """
    truth = json.loads((data_dir / "annotations" / "instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    novel = set(MetadataCatalog.get("emoji_ov_val").novel_classes)
    by_image = _by_image([{**row, "score": 1.0} for row in truth["annotations"]])
    shows_novel = [
        image
        for image in truth["images"]
        if any(names[row["category_id"]] in novel for row in by_image.get(image["id"], []))
    ]
    columns = [
        ("ground truth", by_image),
        ("untouched CLIP", _read_detections(before_dir)),
        ("distilled CLIP", _read_detections(after_dir)),
    ]
    # Stable: pictures with few objects first, otherwise in the file's order.
    shows_novel.sort(key=lambda image: len(by_image[image["id"]]) > FEW)
    pictures = shows_novel[:NUM_PICTURES]
    figure = Figure(figsize=(13, 3.35 * len(pictures)))
    grid = figure.subplots(len(pictures), 3, squeeze=False)
    for row_axes, image in zip(grid, pictures, strict=True):
        pixels = read_image(str(data_dir / "val" / image["file_name"]), "RGB")
        for axes, (title, boxes) in zip(row_axes, columns, strict=True):
            found, most = boxes.get(image["id"], []), len(by_image[image["id"]])
            shown = found if boxes is by_image else best_boxes(found, most)
            axes.imshow(draw_boxes(pixels, shown, names, novel))
            axes.set_axis_off()
            axes.set_title(title)
    figure.suptitle("green: base classes, red and *: novel classes, named by text alone")
    figure.tight_layout()
    figure.savefig(output, dpi=90)


def best_boxes(boxes: Sequence[Box], count: int) -> list[Box]:
    """Choose boxes of one picture by their scores, one a place whatever their classes."""
    if not boxes:
        return []
    xywh = torch.tensor([box["bbox"] for box in boxes], dtype=torch.float32)
    corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
    kept = nms(corners, torch.tensor([box["score"] for box in boxes], dtype=torch.float32), MAX_IOU)
    return [boxes[index] for index in kept[:count].tolist()]


def _read_detections(folder: Path) -> dict[int, list[Box]]:
    path = folder / "inference" / "emoji_ov_val" / "coco_instances_results.json"
    return _by_image(json.loads(path.read_text(encoding="utf-8")))


def _by_image(rows: Sequence[Any]) -> dict[int, list[Box]]:
    boxes: dict[int, list[Box]] = defaultdict(list)
    for row in rows:
        boxes[row["image_id"]].append(row)
    return boxes


def draw_boxes(
    pixels: np.ndarray, boxes: Sequence[Box], names: dict[int, str], novel: set[str]
) -> np.ndarray:
    """Draw boxes, those of novel names red and marked: (2H, 2W, 3) uint8 RGB."""
    drawer = Visualizer(pixels, scale=DRAW_SCALE, instance_mode=ColorMode.IMAGE)
    corners, labels, colors = [], [], []
    for box in sorted(boxes, key=lambda box: box["score"]):
        x, y, width, height = box["bbox"]
        name = names[box["category_id"]]
        corners.append([x, y, x + width, y + height])
        score = "" if box["score"] == 1.0 else f" {100 * box['score']:.0f}"
        labels.append(f"{name}{'*' if name in novel else ''}{score}")
        colors.append(NOVEL_COLOR if name in novel else BASE_COLOR)
    if not corners:
        return drawer.output.get_image()
    return drawer.overlay_instances(
        boxes=np.array(corners), labels=labels, assigned_colors=colors, alpha=0.7
    ).get_image()
