"""Panoptic and semantic results: drawn with a legend, and written in COCO's panoptic format.

Legend: H W pixels.
"""

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont

from clipself_d2.parts.json_file import write_json

# Hues of neighbouring classes lie this far apart, as a share of the circle.
_HUE_STEP = 0.381966
# Pictures are drawn at least this wide, px.
DRAWN_WIDTH = 480
_OPACITY = 0.5
_LINE, _SWATCH = 18, 12
PANOPTIC_FILE, MAPS_FOLDER = "panoptic.json", "panoptic"


def class_shade(number: int) -> tuple[float, float, float]:
    """Colour of a class: RGB, 0 to 1."""
    return colorsys.hsv_to_rgb((number * _HUE_STEP) % 1, 0.75, 1.0)


def class_colour(number: int) -> tuple[int, int, int]:
    """Colour of a class: RGB, 0 to 255."""
    red, green, blue = (round(255 * part) for part in class_shade(number))
    return red, green, blue


def make_labels(found: Instances, names: Sequence[str]) -> list[str]:
    """Write name and score of every detection, such as "dog 90%"."""
    pairs = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    return [f"{names[number]} {score:.0%}" for number, score in pairs]


def segments_of(output: Mapping[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]] | None:
    """Read the segments of a model's output; of ``sem_seg`` (K, H, W) each class is one.

    Returns:
        (H, W) int32 of ids and rows of ``id``, ``category_id`` and ``isthing``; None where there is
        neither ``panoptic_seg`` nor ``sem_seg``.
    """
    if "panoptic_seg" in output:
        ids, rows = output["panoptic_seg"]
        return ids.cpu().numpy().astype(np.int32), [dict(row) for row in rows]
    if "sem_seg" not in output:
        return None
    scores = output["sem_seg"]
    # Where all scores are 0, the best word is a negative one.
    best = torch.where((scores != 0).any(dim=0), scores.argmax(dim=0), -1)
    labels = best.cpu().numpy().astype(np.int32)
    found = np.unique(labels[labels >= 0]).tolist()
    return labels + 1, [{"id": n + 1, "category_id": n, "isthing": False} for n in found]


def draw_segments(
    image: np.ndarray, ids: np.ndarray, segments: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> np.ndarray:
    """Lay every segment's colour over a picture, with a border between segments and a legend.

    The legend of the classes is below the picture, (H', W', 3) uint8 RGB; small pictures are
    enlarged so that it can be read.
    """
    # A whole number, so that ids are repeated and never mixed.
    factor = -(-DRAWN_WIDTH // image.shape[1])
    if factor > 1:
        size = (image.shape[1] * factor, image.shape[0] * factor)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        ids = ids.repeat(factor, axis=0).repeat(factor, axis=1)
    drawn = image.astype(np.float32)
    for row in segments:
        inside = ids == row["id"]
        colour = np.asarray(class_colour(row["category_id"]), np.float32)
        drawn[inside] = (1 - _OPACITY) * drawn[inside] + _OPACITY * colour
    edge = np.zeros(ids.shape, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    drawn[edge] = 255
    counts = Counter(row["category_id"] for row in segments)
    legend = _draw_legend(counts, names, image.shape[1])
    return np.concatenate([drawn.round().astype(np.uint8), legend])


def _draw_legend(counts: Mapping[int, int], names: Sequence[str], width: int) -> np.ndarray:
    font = ImageFont.load_default(size=_SWATCH)
    entries = []
    x, line = 4, 0
    for number, count in sorted(counts.items()):
        text = names[number] if count == 1 else f"{names[number]} x{count}"
        length = _SWATCH + 8 + round(font.getlength(text)) + 10
        if x > 4 and x + length > width:
            x, line = 4, line + 1
        entries.append((x, line, number, text))
        x += length
    canvas = Image.new("RGB", (width, (line + 1) * _LINE + 4 if entries else 0), (24, 24, 24))
    draw = ImageDraw.Draw(canvas)
    for left, row, number, text in entries:
        top = row * _LINE + 4
        draw.rectangle((left, top, left + _SWATCH, top + _SWATCH), fill=class_colour(number))
        draw.text((left + _SWATCH + 5, top - 2), text, fill=(255, 255, 255), font=font)
    return np.asarray(canvas).reshape(-1, width, 3)


class PanopticFile:
    """Segments of many pictures, in COCO's panoptic format.

    Args:
        folder: Folder of the file and of the folder of maps.
        names: Class names; the id of a category is its number, from 0.
        thing_mask: Which classes are things; None: all.
    """

    def __init__(
        self, folder: Path, names: Sequence[str], thing_mask: Sequence[bool] | None = None
    ) -> None:
        self.folder = folder
        flags = [True] * len(names) if thing_mask is None else list(thing_mask)
        self.categories = [
            {"id": number, "name": name, "isthing": int(flag)}
            for number, (name, flag) in enumerate(zip(names, flags, strict=True))
        ]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(
        self, file_name: str, name: str, ids: np.ndarray, segments: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the map of a picture, ``name`` without a suffix, and keep its segments.

        Ids are below 2 to the 24. Segments are rows of ``id``, ``category_id``, optionally
        ``score``.
        """
        maps = self.folder / MAPS_FOLDER
        maps.mkdir(parents=True, exist_ok=True)
        # COCO's code of an id: R + 256 G + 65536 B.
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2)
        Image.fromarray(colours.astype(np.uint8)).save(maps / f"{name}.png")
        image_id, (height, width) = len(self.images) + 1, ids.shape
        row = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        self.images.append(row)
        infos = []
        for segment in segments:
            inside = ids == segment["id"]
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            box = [0, 0, 0, 0]
            if len(rows):
                left, top = int(columns[0]), int(rows[0])
                box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
            info = {
                "id": int(segment["id"]),
                "category_id": int(segment["category_id"]),
                "area": int(inside.sum()),
                "bbox": box,
                "iscrowd": 0,
            }
            if "score" in segment:
                info["score"] = float(segment["score"])
            infos.append(info)
        self.annotations.append(
            {"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos}
        )

    def save(self) -> Path:
        """Write the file and return its path."""
        path = self.folder / PANOPTIC_FILE
        sections = ("images", "annotations", "categories")
        write_json(path, {name: vars(self)[name] for name in sections})
        return path
