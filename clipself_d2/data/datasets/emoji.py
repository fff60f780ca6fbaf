"""The embedded data set in Detectron2's catalogs.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set), all below ``emoji/``:

- ``emoji_ov_train``, ``emoji_ov_val``: COCO protocol; training on base annotations only.
- ``emoji_lvis_train``, ``emoji_lvis_val``: the same scenes in the LVIS protocol; novel = "r".
- ``emoji_panoptic_val``: things and stuff of the validation scenes, for region classification.
- ``emoji_train_images``: all training scenes without annotations, for distillation.
"""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.data.datasets.lvis import load_lvis_json

from clipself_d2.data.datasets.emoji_world import load_world
from clipself_d2.data.datasets.validate import (
    check_coco_file,
    check_images_exist,
    read_annotation_file,
)

Record = dict[str, Any]


def register_emoji(root: str | Path, prefix: str = "emoji") -> list[str]:
    """Register the embedded data set; its files are read when a data set is used.

    Args:
        root: Folder that holds ``emoji/`` as ``datasets/prepare_emoji.py`` writes it.
        prefix: Beginning of the registered names.

    Returns:
        The registered names.
    """
    folder = Path(root) / "emoji"
    files = folder / "annotations"
    loaders: dict[str, tuple[str, str, Path, Callable[..., list[Record]]]] = {
        "ov_train": ("coco_ov", "train", files / "instances_train_base.json", _load_instances),
        "ov_val": ("coco_ov", "val", files / "instances_val.json", _load_instances),
        "lvis_train": ("lvis_ov", "train", files / "lvis_train_base.json", _load_lvis),
        "lvis_val": ("lvis_ov", "val", files / "lvis_val.json", _load_lvis),
    }
    names = []
    for suffix, (evaluator, split, file, load) in loaders.items():
        name = f"{prefix}_{suffix}"
        DatasetCatalog.register(name, partial(load, name, file, folder / split))
        MetadataCatalog.get(name).set(
            json_file=str(file),
            image_root=str(folder / split),
            evaluator_type=evaluator,
            **thing_metadata(),
        )
        names.append(name)
    names += [_register_panoptic(f"{prefix}_panoptic_val", folder)]
    names += [_register_images(f"{prefix}_train_images", folder)]
    return names


def _register_panoptic(name: str, folder: Path) -> str:
    metadata = {
        "json_file": str(folder / "annotations" / "instances_val.json"),
        "panoptic_json": str(folder / "annotations" / "panoptic_val.json"),
        "panoptic_root": str(folder / "panoptic_val"),
        "image_root": str(folder / "val"),
        **thing_metadata(),
        **stuff_metadata(),
    }
    DatasetCatalog.register(name, partial(_load_panoptic, metadata))
    MetadataCatalog.get(name).set(
        evaluator_type="region_classification", ignore_label=255, label_divisor=1000, **metadata
    )
    return name


def _register_images(name: str, folder: Path) -> str:
    file = folder / "annotations" / "images_train.json"
    DatasetCatalog.register(name, partial(_load_images, file, folder / "train"))
    MetadataCatalog.get(name).set(image_root=str(folder / "train"))
    return name


def thing_metadata() -> dict[str, Any]:
    """Describe the things for Detectron2's metadata.

    Returns:
        Names, base and novel names, LVIS frequencies, and contiguous ids 0 to 79.
    """
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
    """Describe the stuff for Detectron2's metadata.

    Returns:
        Names, and contiguous ids that follow those of the things.
    """
    world = load_world()
    return {
        "stuff_classes": list(world.stuff),
        "stuff_dataset_id_to_contiguous_id": {
            stuff_id: len(world.things) + number for number, stuff_id in enumerate(world.stuff_ids)
        },
    }


def _remedy(file: Path) -> str:
    root = file.parents[2]
    return f"run python datasets/prepare_emoji.py --root {root}, or set DETECTRON2_DATASETS"


def _load_instances(name: str, file: Path, image_root: Path) -> list[Record]:
    check_coco_file(file, load_world().thing_names, remedy=_remedy(file))
    return _checked(load_coco_json(str(file), str(image_root), name), file)


def _load_lvis(name: str, file: Path, image_root: Path) -> list[Record]:
    check_coco_file(file, load_world().thing_names, remedy=_remedy(file))
    if importlib.util.find_spec("lvis") is None:
        raise ValueError(f"data set {name} needs the package lvis; run pip install lvis")
    # Detectron2 joins this root with the split in coco_url, and makes ids contiguous by id - 1.
    return _checked(load_lvis_json(str(file), f"{image_root.parent}{os.sep}"), file)


def _load_panoptic(metadata: dict[str, Any]) -> list[Record]:
    file = Path(metadata["panoptic_json"])
    names = [*metadata["thing_classes"], *metadata["stuff_classes"]]
    check_coco_file(file, names, remedy=_remedy(file))
    # Detectron2 asserts that the first pair of files exists; here all are checked, with a remedy.
    image_root, png_root = Path(metadata["image_root"]), Path(metadata["panoptic_root"])
    rows = read_annotation_file(file, ["annotations"])["annotations"]
    stems = [Path(row["file_name"]).stem for row in rows]
    check_images_exist((image_root / f"{stem}.jpg" for stem in stems), remedy=_remedy(file))
    check_images_exist((png_root / f"{stem}.png" for stem in stems), remedy=_remedy(file))
    return load_coco_panoptic_json(str(file), str(image_root), str(png_root), metadata)


def _load_images(file: Path, image_root: Path) -> list[Record]:
    images = read_annotation_file(file, ["images"], remedy=_remedy(file))["images"]
    records = [
        {
            "file_name": str(image_root / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
        }
        for image in images
    ]
    return _checked(records, file)


def _checked(records: list[Record], file: Path) -> list[Record]:
    check_images_exist((record["file_name"] for record in records), remedy=_remedy(file))
    return records


register_emoji(os.getenv("DETECTRON2_DATASETS", "datasets"))
