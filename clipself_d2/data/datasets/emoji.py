"""The embedded data set in Detectron2's catalogs.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set), all below ``emoji/``:

- ``emoji_ov_train``, ``emoji_ov_val``: COCO protocol; training on base annotations only.
- ``emoji_lvis_train``, ``emoji_lvis_val``: the same scenes in the LVIS protocol; novel = "r".
- ``emoji_panoptic_val``: things and stuff of the validation scenes, for region classification.
- ``emoji_ov_panoptic_train``, ``emoji_ov_panoptic_val``: the same for panoptic segmentation; in
  training, segments of novel things are void. The training split's files are written by
  ``datasets/prepare_emoji.py --panoptic-train``.
- ``emoji_ov_sem_seg_train``, ``emoji_ov_sem_seg_val``: label maps of all classes, things first;
  in training, novel things do not count. They are made of the panoptic files when a data set is
  first read, into ``emoji/ov_semantic_<split>``.
- ``emoji_train_images``: all training scenes without annotations, for distillation.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clipself_d2.data.datasets.coco_panoptic import register_panoptic
from clipself_d2.data.datasets.emoji_world import emoji_remedy, load_world
from clipself_d2.data.datasets.instances import register_images, register_instances
from clipself_d2.data.items import Record
from clipself_d2.parts.annotation_files import read_annotation_file
from clipself_d2.parts.label_maps import read_segment_colours, segment_ids

IGNORE_LABEL = 255

# The embedded text tower has read no word but those of the classes' names, so that the only other
# names it can be asked by are parts of its own (``TEST.SYNONYMS``); "hot dog" has none, since the
# dog is a class.
SHORT_NAMES = {
    "alarm clock": ["clock", "alarm"],
    "birthday cake": ["cake", "birthday"],
    "coffee cup": ["cup", "coffee"],
    "fire engine": ["fire", "engine"],
    "hot dog": ["dog"],
    "ice cream": ["ice", "cream"],
    "light bulb": ["bulb"],
    "palm tree": ["palm", "tree"],
    "police car": ["police"],
    "soccer ball": ["soccer", "ball"],
    "teddy bear": ["teddy", "bear"],
    "traffic light": ["traffic"],
}


def register_emoji(root: str | Path, prefix: str = "emoji") -> list[str]:
    """Register the embedded data set below ``root``; its files are read when a data set is used."""
    folder, remedy = Path(root) / "emoji", emoji_remedy(root)
    files, things = folder / "annotations", thing_metadata()
    # Where segments are scored, synonyms would be averaged with the names.
    scored = things | {"class_synonyms": [SHORT_NAMES.get(n, []) for n in things["thing_classes"]]}
    names = [
        register_instances(
            f"{prefix}_{suffix}",
            json_file=files / file,
            image_root=folder / split,
            evaluator_type=evaluator,
            metadata=scored if split == "val" else things,
            remedy=remedy,
        )
        for suffix, evaluator, split, file in (
            ("ov_train", "coco_ov", "train", "instances_train_base.json"),
            ("ov_val", "coco_ov", "val", "instances_val.json"),
            ("lvis_train", "lvis_ov", "train", "lvis_train_base.json"),
            ("lvis_val", "lvis_ov", "val", "lvis_val.json"),
        )
    ]
    made = {"train": f"{remedy} --panoptic-train", "val": remedy}
    panoptic = [
        register_panoptic(
            f"{prefix}_{suffix}",
            json_file=files / f"panoptic_{split}.json",
            image_root=folder / split,
            png_roots=(folder / f"panoptic_{split}",),
            metadata={
                **(scored if kind == "region_classification" else things),
                **stuff_metadata(),
                "json_file": str(files / instances),
            },
            remedy=made[split],
            evaluator_type=kind,
            novel_is_void=split == "train",
        )
        for suffix, split, instances, kind in (
            ("panoptic_val", "val", "instances_val.json", "region_classification"),
            ("ov_panoptic_train", "train", "instances_train_base.json", "ov_panoptic"),
            ("ov_panoptic_val", "val", "instances_val.json", "ov_panoptic"),
        )
    ]
    images = register_images(
        f"{prefix}_train_images",
        json_file=files / "images_train.json",
        image_root=folder / "train",
        remedy=remedy,
    )
    labels = [f"{prefix}_ov_sem_seg_{split}" for split in made]
    metadata = {**things, **stuff_metadata()}
    for name, (split, remedy) in zip(labels, made.items(), strict=True):
        DatasetCatalog.register(name, partial(_load_labels, folder, split, metadata, remedy))
        MetadataCatalog.get(name).set(
            image_root=str(folder / split),
            evaluator_type="ov_sem_seg",
            ignore_label=IGNORE_LABEL,
            **metadata,
        )
    return [*names, *panoptic, images, *labels]


def _load_labels(folder: Path, split: str, metadata: dict[str, Any], remedy: str) -> list[Record]:
    file, maps = folder / "annotations" / f"panoptic_{split}.json", folder / f"ov_semantic_{split}"
    rows = read_annotation_file(file, ["annotations"], remedy=remedy)["annotations"]
    things = metadata["thing_dataset_id_to_contiguous_id"]
    number = {**things, **metadata["stuff_dataset_id_to_contiguous_id"]}
    if split == "train":
        novel = {metadata["thing_classes"].index(name) for name in metadata["novel_classes"]}
        # As if they were not annotated, but no background either.
        number |= {category: IGNORE_LABEL for category, n in things.items() if n in novel}
    maps.mkdir(parents=True, exist_ok=True)
    records = []
    for row in rows:
        stem = Path(row["file_name"]).stem
        target = maps / f"{stem}.png"
        if not target.is_file():
            path = folder / f"panoptic_{split}" / row["file_name"]
            ids = segment_ids(read_segment_colours(str(path)))
            labels = np.full(ids.shape, IGNORE_LABEL, np.uint8)
            for segment in row["segments_info"]:
                labels[ids == segment["id"]] = number[segment["category_id"]]
            save_map(labels, target)
        records.append(
            {
                "file_name": str(folder / split / f"{stem}.jpg"),
                "sem_seg_file_name": str(target),
                "image_id": row["image_id"],
            }
        )
    return records


def save_map(pixels: np.ndarray, target: Path) -> None:
    """Write a PNG of (H, W) labels or (H, W, 3) colours; it is there whole or not at all."""
    # Several processes may draw the same.
    partial_file = target.with_name(f"{target.name}.{os.getpid()}.partial")
    Image.fromarray(pixels).save(partial_file, format="PNG")
    os.replace(partial_file, target)


def thing_metadata() -> dict[str, Any]:
    """Describe the 80 things for Detectron2's metadata."""
    world = load_world()
    novel = set(world.novel_names)
    return {
        "thing_classes": list(world.thing_names),
        "novel_classes": list(world.novel_names),
        "base_classes": [name for name in world.thing_names if name not in novel],
        "class_frequency": [thing.frequency for thing in world.things],
        "thing_dataset_id_to_contiguous_id": {
            thing.id: number for number, thing in enumerate(world.things)
        },
    }


def stuff_metadata() -> dict[str, Any]:
    """Describe the stuff for Detectron2's metadata; ids follow those of the things."""
    world = load_world()
    return {
        "stuff_classes": list(world.stuff),
        "stuff_dataset_id_to_contiguous_id": {
            stuff_id: len(world.things) + number for number, stuff_id in enumerate(world.stuff_ids)
        },
    }
