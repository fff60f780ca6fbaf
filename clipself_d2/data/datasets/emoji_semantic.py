"""The emoji scenes with maps of things against background, for semantic and panoptic heads.

Registered beside ``emoji_ov_train`` and ``emoji_ov_val``:

- ``emoji_semantic_train``, ``emoji_semantic_val``: for SemanticSegmentor, PointRend, DeepLab.
- ``emoji_panoptic_fpn_train``, ``emoji_panoptic_fpn_val``: the same records, whose boxes and masks
  are scored too, for PanopticFPN.

Label 0 is a thing and label 1 the background, as in Detectron2's "separated" panoptic sets. The
maps are drawn from the polygons when a data set is first read, into ``emoji/semantic_<split>``, and
for Detectron2's panoptic evaluator the segments into ``emoji/panoptic_fpn_<split>``.
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw

from clipself_d2.data.datasets.emoji import thing_metadata
from clipself_d2.data.datasets.emoji_world import load_world
from clipself_d2.data.datasets.instances import load_instances
from clipself_d2.data.items import Record
from clipself_d2.parts.annotation_files import read_annotation_file

CLASSES = ("things", "background")
IGNORE_LABEL = 255
# File of all things of a split, novel ones included, from which the maps are drawn.
_FILES = {"train": "instances_train_all.json", "val": "instances_val.json"}
_REMEDY = "make the scenes with datasets/prepare_emoji.py"


def register_emoji_semantic(root: str | Path, prefix: str = "emoji") -> list[str]:
    """Register the data sets below ``root``; files are read when a data set is used."""
    names = []
    for task, evaluator in (("semantic", "sem_seg"), ("panoptic_fpn", "coco_panoptic_seg")):
        for split, file in (("train", "instances_train_base.json"), ("val", "instances_val.json")):
            name = f"{prefix}_{task}_{split}"
            folder = Path(root) / "emoji"
            annotations = folder / "annotations" / file
            load = partial(_load, annotations, split, has_segments=task == "panoptic_fpn")
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(
                json_file=str(annotations),
                image_root=str(folder / split),
                evaluator_type=evaluator,
                stuff_classes=list(CLASSES),
                ignore_label=IGNORE_LABEL,
                **thing_metadata(),
                **(_panoptic_metadata(folder, split) if task == "panoptic_fpn" else {}),
            )
            names.append(name)
    return names


def _panoptic_metadata(emoji: Path, split: str) -> dict[str, Any]:
    """What Detectron2's panoptic evaluator asks for."""
    return {
        "panoptic_root": str(emoji / f"panoptic_fpn_{split}"),
        "panoptic_json": str(emoji / f"panoptic_fpn_{split}.json"),
        # As of COCO's sets: the map's label of things stands for no category.
        "stuff_dataset_id_to_contiguous_id": {0: 0, _background_id(): 1},
    }


def _background_id() -> int:
    return max(thing.id for thing in load_world().things) + 1


def _load(file: Path, split: str, *, has_segments: bool) -> list[Record]:
    emoji = file.parent.parent
    records = load_instances(file, emoji / split, load_world().thing_names, remedy=_REMEDY)
    maps = emoji / f"semantic_{split}"
    write_maps(file.parent / _FILES[split], maps)
    if has_segments:
        write_segments(file.parent / _FILES[split], emoji / f"panoptic_fpn_{split}")
    return [
        {**record, "sem_seg_file_name": str(maps / _map_name(record["file_name"]))}
        for record in records
    ]


def write_maps(annotation_file: Path, folder: Path) -> int:
    """Draw the maps that are missing, one PNG for each image of a COCO file; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {path.name for path in folder.iterdir()}
    document = read_annotation_file(annotation_file, ["images", "annotations"], remedy=_REMEDY)
    missing = {
        image["id"]: image
        for image in document["images"]
        if _map_name(image["file_name"]) not in present
    }
    polygons: dict[int, list[Sequence[float]]] = {number: [] for number in missing}
    for annotation in document["annotations"]:
        if annotation["image_id"] in polygons:
            polygons[annotation["image_id"]] += annotation["segmentation"]
    for number, image in missing.items():
        target = folder / _map_name(image["file_name"])
        drawn = draw_map(polygons[number], (image["height"], image["width"]))
        _save(Image.fromarray(drawn), target)
    return len(missing)


def write_segments(annotation_file: Path, folder: Path) -> None:
    """Draw things and background in COCO's panoptic format, unless that is done.

    The folder holds one PNG for each image; the json lies beside it.
    """
    target = folder.with_name(f"{folder.name}.json")
    if target.is_file() and target.stat().st_mtime_ns >= annotation_file.stat().st_mtime_ns:
        return
    folder.mkdir(parents=True, exist_ok=True)
    document = read_annotation_file(annotation_file, ["images", "annotations"], remedy=_REMEDY)
    things: dict[int, list[Record]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        things[annotation["image_id"]].append(annotation)
    rows = []
    for image in document["images"]:
        segments = draw_segments(things[image["id"]], (image["height"], image["width"]))
        name = _map_name(image["file_name"])
        # A segment's number is written in the bytes of a colour, the lowest first.
        colours = np.stack([segments % 256, segments // 256, segments // 65536], axis=2)
        _save(Image.fromarray(colours.astype(np.uint8)), folder / name)
        categories = [_background_id(), *(thing["category_id"] for thing in things[image["id"]])]
        areas = np.bincount(segments.ravel(), minlength=len(categories) + 1)[1:]
        rows.append(
            {
                "image_id": image["id"],
                "file_name": name,
                "segments_info": [
                    {"id": number, "category_id": category, "area": int(area), "iscrowd": 0}
                    for number, (category, area) in enumerate(
                        zip(categories, areas, strict=True), 1
                    )
                    if area
                ],
            }
        )
    listed = [{"id": thing.id, "name": thing.name, "isthing": 1} for thing in load_world().things]
    listed.append({"id": _background_id(), "name": "background", "isthing": 0})
    made = {"images": document["images"], "annotations": rows, "categories": listed}
    partial_file = target.with_name(f"{target.name}.{os.getpid()}.partial")
    partial_file.write_text(json.dumps(made), encoding="utf-8")
    os.replace(partial_file, target)


def draw_segments(things: Sequence[Record], size: tuple[int, int]) -> np.ndarray:
    """Draw the polygons of each thing by its number on the background of (H, W) px, as int32.

    1 is the background, 2 the first thing, and so on; later things lie above.
    """
    canvas = Image.new("I", (size[1], size[0]), 1)
    draw = ImageDraw.Draw(canvas)
    for number, thing in enumerate(things, start=2):
        for polygon in thing["segmentation"]:
            draw.polygon(list(polygon), fill=number)
    return np.asarray(canvas)


def draw_map(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Draw polygons, flat lists of x and y px, into (H, W) uint8: 0 inside of one, else 1."""
    canvas = Image.new("L", (size[1], size[0]), CLASSES.index("background"))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        draw.polygon(list(polygon), fill=CLASSES.index("things"))
    return np.asarray(canvas)


def _save(picture: Image.Image, target: Path) -> None:
    # Several processes may draw the same.
    partial_file = target.with_name(f"{target.name}.{os.getpid()}.partial")
    picture.save(partial_file, format="PNG")
    os.replace(partial_file, target)


def _map_name(file_name: str) -> str:
    return f"{Path(file_name).stem}.png"
