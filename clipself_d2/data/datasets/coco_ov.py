"""Open-vocabulary COCO: 48 base and 17 novel classes.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set):

- ``coco_ov_train``: annotations of base classes only, 65 classes listed.
- ``coco_ov_val``: annotations of all 65 classes.
- ``coco_2017_train_images``: all training images without annotations, for distillation.

``datasets/prepare_ov_coco.py`` writes the first two files. Other names of the classes, for
TEST.SYNONYMS, are in ``coco_synonyms.json``; they are this project's, no list is published.

Reference: Bansal et al., arXiv 1804.04340 (base and novel classes); Zareian et al., OVR-CNN,
arXiv 2011.10678 (its 65 classes).
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from clipself_d2.data.datasets.instances import class_metadata, register_images, register_instances

# All 80 classes of COCO instances: name by category id.
COCO_THINGS: dict[int, str] = {row["id"]: row["name"] for row in COCO_CATEGORIES if row["isthing"]}

NOVEL_CLASSES = (
    "airplane",
    "bus",
    "cat",
    "dog",
    "cow",
    "elephant",
    "umbrella",
    "tie",
    "snowboard",
    "skateboard",
    "cup",
    "knife",
    "cake",
    "couch",
    "keyboard",
    "sink",
    "scissors",
)
# Neither base nor novel: the benchmark leaves them out.
EXCLUDED_CLASSES = (
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "potted plant",
    "dining table",
    "cell phone",
    "teddy bear",
    "hair drier",
)
# The 65 classes of the benchmark: name by category id of COCO.
OV_COCO_CLASSES: dict[int, str] = {
    category_id: name for category_id, name in COCO_THINGS.items() if name not in EXCLUDED_CLASSES
}

SYNONYMS_FILE = Path(__file__).with_name("coco_synonyms.json")
TRAIN_FILE = "instances_train2017_seen_2_65_cat.json"
VAL_FILE = "instances_val2017_all_2.json"


@cache
def _synonym_table() -> dict[str, list[str]]:
    return json.loads(SYNONYMS_FILE.read_text(encoding="utf-8"))


def coco_synonyms(names: Sequence[str]) -> list[list[str]]:
    """Look up other names of COCO's things: one or more for each, which are no names of COCO."""
    return [list(_synonym_table()[name]) for name in names]


def register_coco_ov(root: str | Path, prefix: str = "") -> list[str]:
    """Register open-vocabulary COCO below ``root``; its files are read when a data set is used."""
    folder = Path(root) / "coco"
    files = folder / "annotations"
    remedy = f"run python datasets/prepare_ov_coco.py --root {root}, or set DETECTRON2_DATASETS"
    metadata = class_metadata(OV_COCO_CLASSES, NOVEL_CLASSES)
    metadata["class_synonyms"] = coco_synonyms(metadata["thing_classes"])
    names = [
        register_instances(
            f"{prefix}{name}",
            json_file=files / file,
            image_root=folder / images,
            evaluator_type="coco_ov",
            metadata=metadata,
            remedy=remedy,
        )
        for name, file, images in (
            ("coco_ov_train", TRAIN_FILE, "train2017"),
            ("coco_ov_val", VAL_FILE, "val2017"),
        )
    ]
    images = register_images(
        f"{prefix}coco_2017_train_images",
        json_file=files / "instances_train2017.json",
        image_root=folder / "train2017",
        remedy=f"download COCO 2017 to {folder}, or set DETECTRON2_DATASETS",
    )
    return [*names, images]
