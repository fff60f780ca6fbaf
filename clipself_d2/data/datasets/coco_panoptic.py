"""COCO panoptic: 80 things, then 53 kinds of stuff.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set):

- ``coco_2017_val_panoptic_regions``: validation for region classification.
- ``coco_2017_train_ov_panoptic``, ``coco_2017_val_ov_panoptic``: for panoptic segmentation; all
  classes are base.
- ``ade20k_ov_panoptic_val``: ADE20K's 150 classes from ``ADEChallengeData2016``, as the scripts of
  Mask2Former lay it out: ``ade20k_panoptic_val.json``, ``ade20k_panoptic_val/`` and
  ``images/validation/``. Its classes are read from the file.

The PNGs of segment ids lie in ``coco/panoptic_<split>``, where Detectron2 looks for them, or in
``coco/annotations/panoptic_<split>``, where the official archive puts them.

Reference: the zero-shot evaluation of CLIPSelf, arXiv 2310.01403, section 4.1.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json

from clipself_d2.data.datasets.coco_ov import COCO_THINGS, NOVEL_CLASSES, coco_synonyms
from clipself_d2.data.datasets.instances import class_metadata
from clipself_d2.data.datasets.validate import check_coco_file, check_images_exist
from clipself_d2.data.items import Record

# Name by category id, as the official file has it; "-merged" and "-other" stay, as published.
COCO_STUFF: dict[int, str] = {
    row["id"]: row["name"] for row in COCO_CATEGORIES if not row["isthing"]
}


def panoptic_metadata() -> dict[str, Any]:
    """Describe the 133 classes for Detectron2's metadata.

    Names of things and of stuff, the 17 novel things of open-vocabulary COCO, other names of the
    things, and contiguous ids: things 0 to 79, stuff 80 to 132.
    """
    things = class_metadata(COCO_THINGS, NOVEL_CLASSES)
    return {
        **things,
        "class_synonyms": coco_synonyms(things["thing_classes"]),
        "stuff_classes": [COCO_STUFF[number] for number in sorted(COCO_STUFF)],
        "stuff_dataset_id_to_contiguous_id": {
            stuff_id: number for number, stuff_id in enumerate(sorted(COCO_STUFF), len(COCO_THINGS))
        },
    }


def register_coco_panoptic(root: str | Path, prefix: str = "") -> list[str]:
    """Register COCO panoptic below ``root``; its files are read when a data set is used."""
    folder, notes = Path(root) / "coco", Path(root) / "coco" / "annotations"
    regions = panoptic_metadata()
    segments = {key: value for key, value in regions.items() if key != "novel_classes"}
    segments |= {"novel_classes": [], "base_classes": regions["thing_classes"]}
    ade = Path(root) / "ADEChallengeData2016"
    ade_name = register_panoptic(
        f"{prefix}ade20k_ov_panoptic_val",
        json_file=ade / "ade20k_panoptic_val.json",
        image_root=ade / "images" / "validation",
        png_roots=(ade / "ade20k_panoptic_val",),
        remedy=f"lay ADE20K's panoptic files out in {ade}, or set DETECTRON2_DATASETS",
    )
    return [ade_name] + [
        register_panoptic(
            f"{prefix}coco_2017_{name}",
            json_file=notes / f"panoptic_{split}.json",
            image_root=folder / split,
            png_roots=(folder / f"panoptic_{split}", notes / f"panoptic_{split}"),
            metadata={**metadata, "json_file": str(notes / f"instances_{split}.json")},
            remedy=f"download COCO 2017 and its panoptic annotations to {folder}, or set "
            "DETECTRON2_DATASETS",
            evaluator_type=kind,
        )
        for name, split, metadata, kind in (
            ("val_panoptic_regions", "val2017", regions, "region_classification"),
            ("train_ov_panoptic", "train2017", segments, "ov_panoptic"),
            ("val_ov_panoptic", "val2017", segments, "ov_panoptic"),
        )
    ]


def register_panoptic(
    name: str,
    *,
    json_file: Path,
    image_root: Path,
    png_roots: tuple[Path, ...],
    remedy: str,
    metadata: dict[str, Any] | None = None,
    evaluator_type: str = "ov_panoptic",
    novel_is_void: bool = False,
) -> str:
    """Register a panoptic file for region classification or segmentation; returns the name.

    Args:
        name: Name of the data set.
        json_file: COCO panoptic file.
        image_root: Folder of the JPEGs.
        png_roots: Folders that may hold the PNGs; the first that exists counts.
        remedy: What the user can do about a missing file, an imperative clause.
        metadata: Names and contiguous ids of things and stuff, as ``panoptic_metadata``; None takes
            the classes that the file lists, when the data set is used. Whether one of these is
            novel is decided by the words of the training.
        evaluator_type: ``region_classification`` or ``ov_panoptic``.
        novel_is_void: Whether segments of novel classes are left out, as in training.
    """

    def load() -> list[Record]:
        if metadata is None:
            content = check_coco_file(json_file, remedy=remedy)
            known = listed_metadata(content["categories"])
            MetadataCatalog.get(name).set(**known)
        else:
            content = check_coco_file(json_file, _names(metadata), remedy=remedy)
            known = metadata
        png_root = _png_root(png_roots)
        # Detectron2 asserts that the first pair of files exists; here all are checked, with a
        # remedy.
        stems = [Path(row["file_name"]).stem for row in content["annotations"]]
        check_images_exist((image_root / f"{stem}.jpg" for stem in stems), remedy=remedy)
        check_images_exist((png_root / f"{stem}.png" for stem in stems), remedy=remedy)
        records = load_coco_panoptic_json(str(json_file), str(image_root), str(png_root), known)
        void = set(known.get("novel_classes") or ()) if novel_is_void else set()
        names = _names(known)
        for record in records:
            kept = [row for row in record["segments_info"] if names[row["category_id"]] not in void]
            record["segments_info"] = kept
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        panoptic_json=str(json_file),
        panoptic_root=str(_png_root(png_roots)),
        image_root=str(image_root),
        evaluator_type=evaluator_type,
        ignore_label=255,
        label_divisor=1000,
        **(metadata or {}),
    )
    return name


def listed_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe the classes that a panoptic file lists, things first.

    A name may hold several words between commas, as ADE20K's: the first is the name, the others its
    synonyms.
    """
    # Things first, as contiguous numbers have them.
    rows = sorted(categories, key=lambda row: (not row.get("isthing"), row["id"]))
    words = [[word.strip() for word in row["name"].split(",") if word.strip()] for row in rows]
    first = Counter(group[0] for group in words)
    # Two classes of one first word, such as two kinds of screens, keep their whole names.
    names = [
        group[0] if first[group[0]] == 1 else row["name"]
        for row, group in zip(rows, words, strict=True)
    ]
    things = sum(bool(row.get("isthing")) for row in rows)
    numbers = [(row["id"], position) for position, row in enumerate(rows)]
    return {
        "thing_classes": names[:things],
        "stuff_classes": names[things:],
        "thing_dataset_id_to_contiguous_id": dict(numbers[:things]),
        "stuff_dataset_id_to_contiguous_id": dict(numbers[things:]),
        "class_synonyms": [
            group[1:] if name == group[0] else group
            for name, group in zip(names, words, strict=True)
        ],
    }


def _names(metadata: Mapping[str, Any]) -> list[str]:
    return [*metadata["thing_classes"], *metadata["stuff_classes"]]


def _png_root(folders: tuple[Path, ...]) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])
