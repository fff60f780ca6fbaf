"""The emoji scenes with maps of things against background, for semantic and panoptic heads.

Registered beside ``emoji_ov_train`` and ``emoji_ov_val``:

- ``emoji_semantic_train``, ``emoji_semantic_val``: for SemanticSegmentor, PointRend, DeepLab.
- ``emoji_panoptic_fpn_train``, ``emoji_panoptic_fpn_val``: the same records, whose boxes and masks
  are scored too, for PanopticFPN.

Label 0 is a thing and label 1 the background, as in Detectron2's "separated" panoptic sets. The
maps are drawn from the polygons when a data set is first read, into ``emoji/semantic_<split>``, and
for Detectron2's panoptic evaluator the segments into ``emoji/panoptic_fpn_<split>``.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw

from clipself_d2.data.datasets.emoji import IGNORE_LABEL, save_map, thing_metadata
from clipself_d2.data.datasets.emoji_world import load_world
from clipself_d2.data.datasets.instances import load_instances
from clipself_d2.data.items import Record
from clipself_d2.parts.annotation_files import read_annotation_file
from clipself_d2.parts.json_file import write_json

CLASSES = ("things", "background")
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
            annotations, has_segments = folder / "annotations" / file, task == "panoptic_fpn"
            load = partial(_load, annotations, split, has_segments=has_segments)
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(
                json_file=str(annotations),
                image_root=str(folder / split),
                evaluator_type=evaluator,
                stuff_classes=list(CLASSES),
                ignore_label=IGNORE_LABEL,
                **thing_metadata(),
            )
            if has_segments:
                # What Detectron2's panoptic evaluator asks for; as of COCO's sets, the map's label
                # of things stands for no category.
                MetadataCatalog.get(name).set(
                    panoptic_root=str(folder / f"panoptic_fpn_{split}"),
                    panoptic_json=str(folder / f"panoptic_fpn_{split}.json"),
                    stuff_dataset_id_to_contiguous_id={0: 0, _background_id(): 1},
                )
            names.append(name)
    return names


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
    polygons: dict[int, list[Sequence[float]]] = defaultdict(list)
    for annotation in document["annotations"]:
        polygons[annotation["image_id"]] += annotation["segmentation"]
    names = {image["id"]: _map_name(image["file_name"]) for image in document["images"]}
    missing = [image for image in document["images"] if names[image["id"]] not in present]
    for image in missing:
        drawn = draw_map(polygons[image["id"]], (image["height"], image["width"]))
        save_map(drawn, folder / names[image["id"]])
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
        save_map(colours.astype(np.uint8), folder / name)
        categories = [_background_id(), *(thing["category_id"] for thing in things[image["id"]])]
        # By number, of which there is no 0; what lies under later things may have no pixel.
        areas = np.bincount(segments.ravel(), minlength=len(categories) + 1)
        infos = [
            {"id": number, "category_id": category, "area": int(areas[number]), "iscrowd": 0}
            for number, category in enumerate(categories, start=1)
            if areas[number]
        ]
        rows.append({"image_id": image["id"], "file_name": name, "segments_info": infos})
    listed = [{"id": thing.id, "name": thing.name, "isthing": 1} for thing in load_world().things]
    listed.append({"id": _background_id(), "name": "background", "isthing": 0})
    made = {"images": document["images"], "annotations": rows, "categories": listed}
    write_json(target, made)


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
    segments = draw_segments([{"segmentation": polygons}], size)
    return (segments == 1).astype(np.uint8)


def _map_name(file_name: str) -> str:
    return f"{Path(file_name).stem}.png"
