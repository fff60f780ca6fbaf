"""Open-vocabulary LVIS v1: 866 base (frequent and common) and 337 novel (rare) classes.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set):

- ``lvis_ov_train``: rare annotations removed, 1203 classes listed.
- ``lvis_ov_val``: the official validation file.
- ``lvis_ov_minival``: its images that are in COCO's val2017.
- ``lvis_v1_train_images``: all training images without annotations, for distillation.

``datasets/prepare_ov_lvis.py`` writes the first file, and the third where it is missing.

Reference: Gupta et al., LVIS, arXiv 1908.03195; Gu et al., ViLD, arXiv 2104.13921 (rare classes as
novel).
"""

from pathlib import Path
from typing import Any

from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from clipself_d2.data.datasets.instances import class_metadata, register_images, register_instances

# Name by category id, as the official files have it. Detectron2's own metadata takes the first
# synonym instead, which differs for one class (162, bull).
LVIS_CLASSES: dict[int, str] = {row["id"]: row["name"] for row in LVIS_CATEGORIES}
LVIS_FREQUENCY: dict[int, str] = {row["id"]: row["frequency"] for row in LVIS_CATEGORIES}
LVIS_SYNONYMS: dict[int, list[str]] = {
    row["id"]: [name for name in row["synonyms"] if name != row["name"]] for row in LVIS_CATEGORIES
}
NOVEL_IDS = frozenset(number for number, kind in LVIS_FREQUENCY.items() if kind == "r")

TRAIN_FILE = "lvis_v1_train_seen_1203_cat.json"
VAL_FILE = "lvis_v1_val.json"
MINIVAL_FILE = "lvis_v1_minival_inserted_image_name.json"


def lvis_metadata() -> dict[str, Any]:
    """Describe the 1203 classes of LVIS v1 for Detectron2's metadata.

    Names are as in the official files (words joined by underscores); ``class_synonyms`` may be
    empty lists.
    """
    ids = sorted(LVIS_CLASSES)
    return {
        **class_metadata(LVIS_CLASSES, {LVIS_CLASSES[number] for number in NOVEL_IDS}),
        "class_frequency": [LVIS_FREQUENCY[number] for number in ids],
        "class_synonyms": [list(LVIS_SYNONYMS[number]) for number in ids],
    }


def register_lvis_ov(root: str | Path, prefix: str = "") -> list[str]:
    """Register open-vocabulary LVIS below ``root``; its files are read when a data set is used."""
    files, images = Path(root) / "lvis", Path(root) / "coco"
    prepare = f"run python datasets/prepare_ov_lvis.py --root {root}"
    download = f"download LVIS v1 to {files} and COCO 2017 to {images}"
    names = [
        register_instances(
            f"{prefix}{name}",
            json_file=files / file,
            image_root=images,
            evaluator_type="lvis_ov",
            metadata=lvis_metadata(),
            remedy=f"{remedy}, or set DETECTRON2_DATASETS",
            prefer_url=True,
        )
        for name, file, remedy in (
            ("lvis_ov_train", TRAIN_FILE, prepare),
            ("lvis_ov_val", VAL_FILE, download),
            ("lvis_ov_minival", MINIVAL_FILE, prepare),
        )
    ]
    return [
        *names,
        register_images(
            f"{prefix}lvis_v1_train_images",
            json_file=files / "lvis_v1_train.json",
            image_root=images,
            remedy=f"{download}, or set DETECTRON2_DATASETS",
            prefer_url=True,
        ),
    ]
