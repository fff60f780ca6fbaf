"""RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and the emoji references in Detectron2's catalogs.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set): ``refcoco_unc_*``,
``refcocoplus_unc_*``, ``refcocog_umd_*``, ``refcocog_google_*``, ``grefcoco_unc_*`` and
``emoji_refer_*``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets.emoji_world import emoji_remedy
from clipself_d2.data.datasets.refer_files import load_refer

EVALUATOR_TYPE = "refer"
IMAGE_FOLDER = Path("coco") / "train2014"
REMEDY = (
    "put the files where datasets/README.md says, check them with datasets/prepare_refcoco.py, or "
    "set DETECTRON2_DATASETS"
)
EMOJI_SPLITS = {"train": "instances_train_all.json", "val": "instances_val.json"}


@dataclass(frozen=True)
class ReferFamily:
    """One data set with one way of splitting it.

    Attributes:
        folder: Folder below ``$DETECTRON2_DATASETS``.
        split_by: Name in the file ``refs(<split_by>).p``.
        counts: Published number of references of every split; None where none is known.
        stem: Beginning of that file's name.
    """

    folder: str
    split_by: str
    counts: Mapping[str, int | None]
    stem: str = "refs"

    @property
    def refs_name(self) -> str:
        """Name of the file with the references."""
        return f"{self.stem}({self.split_by}).p"


# Numbers of references as https://github.com/lichengunc/refer gives them. gRefCOCO's sentences may
# refer to several objects or to none (Liu et al., GRES, arXiv 2306.00968).
FAMILIES = {
    "refcoco_unc": ReferFamily(
        "refcoco", "unc", {"train": 42404, "val": 3811, "testA": 1975, "testB": 1810}
    ),
    "refcocoplus_unc": ReferFamily(
        "refcoco+", "unc", {"train": 42278, "val": 3805, "testA": 1975, "testB": 1798}
    ),
    "refcocog_umd": ReferFamily("refcocog", "umd", {"train": 42226, "val": 2573, "test": 5023}),
    "refcocog_google": ReferFamily("refcocog", "google", {"train": 44822, "val": 5000}),
    "grefcoco_unc": ReferFamily(
        "grefcoco", "unc", dict.fromkeys(("train", "val", "testA", "testB")), stem="grefs"
    ),
}


def register_refcoco(root: str | Path) -> list[str]:
    """Register the data sets on COCO images below ``root``; files are read when one is used."""
    root = Path(root)
    return [
        _register(
            f"{prefix}_{split}",
            refs_file=root / family.folder / family.refs_name,
            instances_file=root / family.folder / "instances.json",
            image_root=root / IMAGE_FOLDER,
            split=split,
            remedy=REMEDY,
        )
        for prefix, family in FAMILIES.items()
        for split in family.counts
    ]


def register_emoji_refer(root: str | Path, prefix: str = "emoji") -> list[str]:
    """Register the references of the embedded data set below ``root``."""
    folder, files = Path(root) / "emoji", Path(root) / "emoji" / "annotations"
    return [
        _register(
            f"{prefix}_refer_{split}",
            refs_file=files / f"refs_{split}.json",
            instances_file=files / instances,
            image_root=folder / split,
            split=split,
            remedy=emoji_remedy(root),
        )
        for split, instances in EMOJI_SPLITS.items()
    ]


def _register(
    name: str, *, refs_file: Path, instances_file: Path, image_root: Path, split: str, remedy: str
) -> str:
    load = partial(load_refer, refs_file, instances_file, image_root, split, remedy=remedy)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=str(instances_file),
        refs_file=str(refs_file),
        image_root=str(image_root),
        evaluator_type=EVALUATOR_TYPE,
    )
    return name
