"""Open-vocabulary semantic segmentation: label maps beside pictures.

Registered under ``$DETECTRON2_DATASETS`` (``datasets`` when not set), as
``datasets/prepare_semseg.py`` writes them, in ``semantic/<set>/<split>/``:

- ``coco_stuff_sem_seg_train``, ``coco_stuff_sem_seg_val``: COCO-Stuff's 171 classes;
- ``ade20k_150_sem_seg_val``, ``ade20k_847_sem_seg_val``: ADE20K, the latter 16-bit maps;
- ``context_59_sem_seg_val``, ``context_459_sem_seg_val``: Pascal Context;
- ``voc_20_sem_seg_val`` (no background), ``voc_20b_sem_seg_val`` (20 classes and Pascal Context's
  others, whose predictions all count as background), ``voc_21_sem_seg_val`` (background is a word).

Class names lie beside the maps in ``classes.json``. Any other data set is named in place by
``sem_seg:IMAGES:LABELS:CLASSES.json``. All have the ``evaluator_type`` ov_sem_seg.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.items import Record

CLASSES_FILE = "classes.json"
SEGMENT_CLASSES = Path(__file__).parent / "segment_classes.json"
IGNORE_8, IGNORE_16 = 255, 65535
_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_MAPS = (".png", ".tif", ".tiff")
# Set, splits, and the number of labels in its maps.
SETS: dict[str, tuple[tuple[str, ...], int]] = {
    "coco_stuff": (("train", "val"), 171),
    "ade20k_150": (("val",), 150),
    "ade20k_847": (("val",), 847),
    "context_59": (("val",), 59),
    "context_459": (("val",), 459),
    "voc_20": (("val",), 20),
    "voc_20b": (("val",), 21),
    "voc_21": (("val",), 21),
}


def register_semantic_sets(root: str | Path, prefix: str = "") -> list[str]:
    """Register the published benchmarks below ``root``; files are read when a set is used."""
    names = []
    for name, (splits, _) in SETS.items():
        folder = Path(root) / "semantic" / name
        for split in splits:
            registered = f"{prefix}{name}_sem_seg_{split}"
            register_semantic(
                registered,
                image_root=folder / split / "images",
                label_root=folder / split / "labels",
                classes_file=folder / CLASSES_FILE,
                fold_from=20 if name == "voc_20b" else None,
                remedy=f"prepare it with datasets/prepare_semseg.py {name}",
            )
            names.append(registered)
    return names


def register_semantic(
    name: str,
    *,
    image_root: Path,
    label_root: Path,
    classes_file: Path,
    fold_from: int | None = None,
    remedy: str,
) -> str:
    """Register pictures and label maps; returns the name.

    Args:
        name: Name of the data set.
        image_root: Folder of the pictures.
        label_root: Folder of the maps, png or tif of 8 or 16 bit, named as the pictures are.
        classes_file: json list of class names in the order of the labels; an entry may hold
            synonyms behind commas, or be a list of them. Pixels that do not count have the label
            65535 where there are more than 255 classes, else 255.
        fold_from: Predictions of this class and all behind it count as this class.
        remedy: What the user can do about a missing file, an imperative clause.
    """

    def load() -> list[Record]:
        metadata = read_classes(classes_file, remedy)
        ignore = IGNORE_16 if len(metadata["stuff_classes"]) > IGNORE_8 else IGNORE_8
        MetadataCatalog.get(name).set(ignore_label=ignore, **metadata)
        return pair_files(image_root, label_root, remedy)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        evaluator_type="ov_sem_seg",
        image_root=str(image_root),
        sem_seg_root=str(label_root),
        fold_from=fold_from,
    )
    return name


def read_classes(file: Path, remedy: str) -> dict[str, Any]:
    """Read a json list of names; synonyms stand behind commas, or a name is a list of words.

    Gives ``thing_classes`` (none), ``stuff_classes`` and ``class_synonyms`` for the metadata; a
    FileNotFoundError or ValueError refuses no list, an empty one, or one that repeats a class.
    """
    if not file.is_file():
        raise FileNotFoundError(f"list of classes {file} does not exist; {remedy}")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"list of classes {file} is no json ({error}); {remedy}") from error
    entries = content if isinstance(content, list) else []
    groups = [entry.split(",") if isinstance(entry, str) else entry for entry in entries]
    if not groups or not all(_are_words(group) for group in groups):
        raise ValueError(
            f"list of classes {file} is not a json list of names such as "
            '["wall", "road, street"]; ' + remedy
        )
    # The first word is the name, the others are its synonyms.
    words = [[word.strip() for word in group if word.strip()] for group in groups]
    first = [group[0] for group in words]
    # Two classes of one first word keep all of their words in the name.
    names = [g[0] if first.count(g[0]) == 1 else ", ".join(g) for g in words]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"list of classes {file} names {repeated[0]!r} twice; {remedy}")
    synonyms = [g[1:] if n == g[0] else [] for n, g in zip(names, words, strict=True)]
    return {"thing_classes": [], "stuff_classes": names, "class_synonyms": synonyms}


def pair_files(image_root: Path, label_root: Path, remedy: str) -> list[Record]:
    """Find the pictures of label maps; the maps decide which pictures count.

    A FileNotFoundError names a missing folder or picture, or says that there is no map.
    """
    for folder in (image_root, label_root):
        if not folder.is_dir():
            raise FileNotFoundError(f"folder {folder} does not exist; {remedy}")
    # By the stem, since suffixes differ.
    pictures = {path.stem: path for path in _files(image_root, _PICTURES)}
    maps = _files(label_root, _MAPS)
    if not maps:
        raise FileNotFoundError(f"there is no label map in {label_root}; {remedy}")
    alone = [path for path in maps if path.stem not in pictures]
    if alone:
        raise FileNotFoundError(
            f"{len(alone)} of {len(maps)} label maps have no picture in {image_root}, the first "
            f"is {alone[0].name}; {remedy}"
        )
    return [
        {
            "file_name": str(pictures[path.stem]),
            "sem_seg_file_name": str(path),
            "image_id": path.stem,
        }
        for path in maps
    ]


def _are_words(group: object) -> bool:
    return (
        isinstance(group, list)
        and any(isinstance(word, str) and word.strip() for word in group)
        and all(isinstance(word, str) for word in group)
    )


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    # macOS lays ._ files beside the others.
    return sorted(path for path in found if not path.name.startswith("._"))
