"""Data sets for transfer: a detector trained elsewhere is scored with their vocabularies.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set), all with COCO's protocol:

- ``coco_80_val``: COCO 2017 validation with all 80 classes, the official file.
- ``voc_ov_2007_test``, ``voc_ov_2012_val``: Pascal VOC, 20 classes.
- ``objects365_v1_val``, ``objects365_v2_val``: 365 classes, their misspelt names set right.

``datasets/prepare_transfer.py`` writes the files of all but the first. No class is called novel
here: ``MODEL.OPEN_VOCAB.ENSEMBLE_ALPHA`` is the one exponent of all classes, as in the published
transfer.
"""

import json
import re
from functools import cache
from pathlib import Path

from clipself_d2.data.datasets.coco_ov import COCO_THINGS, coco_synonyms
from clipself_d2.data.datasets.instances import class_metadata, register_instances

OBJECTS365_FILE = Path(__file__).with_name("objects365_classes.json")

# Name in the annotations, name in prompts.
VOC_CLASSES: dict[str, str] = {
    "aeroplane": "aeroplane",
    "bicycle": "bicycle",
    "bird": "bird",
    "boat": "boat",
    "bottle": "bottle",
    "bus": "bus",
    "car": "car",
    "cat": "cat",
    "chair": "chair",
    "cow": "cow",
    "diningtable": "dining table",
    "dog": "dog",
    "horse": "horse",
    "motorbike": "motorbike",
    "person": "person",
    "pottedplant": "potted plant",
    "sheep": "sheep",
    "sofa": "sofa",
    "train": "train",
    "tvmonitor": "tv monitor",
}

# Registered name: version, prepared file and folder of the images below the root.
OBJECTS365_SETS = {
    "objects365_v1_val": ("v1", "objects365v1/ov_val.json", "objects365v1/val"),
    "objects365_v2_val": ("v2", "objects365v2/ov_val.json", "objects365v2/val"),
}
# Registered name: folder below the root and split.
VOC_SETS = {"voc_ov_2007_test": ("VOC2007", "test"), "voc_ov_2012_val": ("VOC2012", "val")}


@cache
def objects365_names(version: str) -> dict[str, str]:
    """Look up the class names of Objects365 v1 or v2, whose order and many names differ.

    365 entries in the order of the category ids: name in the official file (without the spaces
    that some end in) to name in prompts.
    """
    table = json.loads(OBJECTS365_FILE.read_text(encoding="utf-8"))[version]
    return {name: table["fixes"].get(name, name) for name in table["names"]}


def plain_name(name: str) -> str:
    """Reduce a class name to what copies of an annotation file agree on.

    Without capitals, double spaces, and spaces at its ends and around slashes.
    """
    return re.sub(r" ?/ ?", "/", " ".join(name.split())).casefold()


def voc_file(folder: Path, split: str) -> Path:
    """Name the prepared file of a VOC split, such as ``test`` in the folder ``VOC2007``."""
    return folder / f"ov_{split}.json"


def register_transfer(root: str | Path, prefix: str = "") -> list[str]:
    """Register the transfer sets below ``root``; their files are read when a data set is used."""
    root = Path(root)
    prepare = f"run python datasets/prepare_transfer.py --root {root}"
    coco = class_metadata(COCO_THINGS)
    coco["class_synonyms"] = coco_synonyms(coco["thing_classes"])
    file = root / "coco" / "annotations" / "instances_val2017.json"
    download = f"download COCO 2017 to {root / 'coco'}"
    sets = [("coco_80_val", file, root / "coco" / "val2017", coco, download)]
    voc = class_metadata(dict(enumerate(VOC_CLASSES.values(), start=1)))
    for name, (year, split) in VOC_SETS.items():
        folder = root / year
        sets.append((name, voc_file(folder, split), folder / "JPEGImages", voc, prepare))
    for name, (version, prepared, images) in OBJECTS365_SETS.items():
        classes = class_metadata(dict(enumerate(objects365_names(version).values(), start=1)))
        sets.append((name, root / prepared, root / images, classes, prepare))
    return [
        register_instances(
            f"{prefix}{name}",
            json_file=file,
            image_root=images,
            evaluator_type="coco_ov",
            metadata=metadata,
            remedy=f"{remedy}, or set DETECTRON2_DATASETS",
        )
        for name, file, images, metadata, remedy in sets
    ]
