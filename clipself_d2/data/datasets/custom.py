"""Data sets that are named by where they lie, in DATASETS.TRAIN and DATASETS.TEST.

- ``images:/folder`` or ``images:/list.txt``: images without annotations;
- ``coco_images:/images.json:/folder``: the images of a COCO or LVIS file;
- ``webdataset:/shards-{000000..000331}.tar``: pictures in tar shards;
- ``coco_json:/train.json:/folder``, ``coco_json:/train.json:/folder:/base.txt`` or
  ``coco_json:/train.json:/folder:base=dog,cat``: detection, with all classes base, or those that a
  vocabulary file names (whose synonyms serve TEST.SYNONYMS), or those named in place;
- ``panoptic:/panoptic.json:/maps:/folder``: panoptic segmentation in COCO's format, with the
  classes that the file lists;
- ``sem_seg:/images:/labels:/classes.json``: semantic segmentation, as ``datasets/semantic.py``
  says;
- ``captions:/captions.json:/folder`` and ``captions_webdataset:/shards-{000000..000331}.tar``:
  pictures with captions, as ``datasets/captions.py`` says.

Paths may be relative to the working directory and begin with ``~``; they have no colon.
"""

import difflib
import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets.captions import caption_file_records, shard_caption_records
from clipself_d2.data.datasets.coco_panoptic import register_panoptic
from clipself_d2.data.datasets.images_only import folder_records, list_records, shard_records
from clipself_d2.data.datasets.instances import class_metadata, register_images, register_instances
from clipself_d2.data.datasets.semantic import register_semantic
from clipself_d2.data.datasets.validate import check_coco_file
from clipself_d2.data.items import Record
from clipself_d2.data.tar_shards import expand_shards
from clipself_d2.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Begins base classes that are named in place.
BASE_SIGN = "base="
REMEDY = "correct the file, or its path in DATASETS"


def resolve_dataset_names(names: Sequence[str]) -> tuple[str, ...]:
    """Register the data sets that are named by where they lie, each under its own specification.

    Names without a colon, or registered ones, are left alone. Returns the same names; a
    FileNotFoundError or ValueError says what of a specification, or of its files, is wrong.
    """
    for name in names:
        kind, *parts = name.split(":")
        if not parts or name in DatasetCatalog.list():
            continue
        if kind not in KINDS:
            forms = ", ".join(form for _, form, _ in KINDS.values())
            raise ValueError(f"data set {name!r} is of the kind {kind!r}, expected one of {forms}")
        register, form, counts = KINDS[kind]
        if len(parts) not in counts or not all(parts):
            raise ValueError(
                f"data set {name!r} has {len(parts)} paths after its kind; expected {form}"
            )
        register(name, *(Path(part).expanduser() for part in parts))
    return tuple(names)


def folder_name(name: str) -> str:
    """Turn a data set's name into the name of a folder for its results.

    A specification becomes its kind, the stem of its first path, and eight hex digits that tell it
    from others.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        return name
    # Two sets may have files of one name in different folders.
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{kind}_{Path(rest.partition(':')[0]).stem}_{digest}"


def _register(name: str, load: Callable[[], list[Record]], image_root: Path) -> None:
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(image_root=str(image_root))


def _register_pictures(name: str, path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"data set {name!r}: {path} does not exist")
    if path.is_dir():
        _register(name, partial(folder_records, path), path)
    else:
        _register(name, partial(list_records, path), path.parent)


def _register_shards(read: Callable[[str], list[Record]], name: str, pattern: Path) -> None:
    _register(name, partial(read, str(pattern)), expand_shards(str(pattern))[0].parent)


def _register_coco_images(name: str, json_file: Path, image_root: Path) -> None:
    _check_paths(name, json_file, image_root)
    register_images(name, json_file=json_file, image_root=image_root, remedy=REMEDY)


def _register_coco_json(
    name: str, json_file: Path, image_root: Path, given: Path | None = None
) -> None:
    _check_paths(name, json_file, image_root)
    # The whole file is checked; what is mended is said when its records are read.
    rows = check_coco_file(json_file, remedy=REMEDY, quiet=True)["categories"]
    categories = {row["id"]: row["name"] for row in rows}
    metadata = class_metadata(categories)
    if given is not None:
        names = metadata["thing_classes"]
        vocabulary = _read_classes(str(given))
        base = set(vocabulary.names) - set(vocabulary.novel_names)
        _check_base(base, str(given), json_file, names)
        metadata = class_metadata(categories, set(names) - base)
        if vocabulary.synonyms:
            words = dict(zip(vocabulary.names, vocabulary.synonyms, strict=True))
            metadata["class_synonyms"] = [list(words.get(each, ())) for each in names]
        novel = len(metadata["novel_classes"])
        logger.info("%s: %d base and %d novel classes", json_file, len(base), novel)
    register_instances(
        name,
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco_ov",
        metadata=metadata,
        remedy=REMEDY,
        # The evaluator reads the file itself; records serve training, which sees base boxes only.
        drop_novel=True,
    )


def _register_panoptic(name: str, json_file: Path, png_root: Path, image_root: Path) -> None:
    _check_paths(name, json_file, image_root, png_root)
    register_panoptic(
        name, json_file=json_file, image_root=image_root, png_roots=(png_root,), remedy=REMEDY
    )


def _register_sem_seg(name: str, image_root: Path, label_root: Path, classes: Path) -> None:
    register_semantic(
        name, image_root=image_root, label_root=label_root, classes_file=classes, remedy=REMEDY
    )


def _register_captions(name: str, file: Path, image_root: Path) -> None:
    _check_paths(name, file, image_root)
    _register(name, partial(caption_file_records, file, image_root), image_root)


def _check_paths(name: str, file: Path, *folders: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"data set {name!r}: annotation file {file} does not exist")
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"data set {name!r}: image folder {folder} does not exist")


def _read_classes(given: str) -> Vocabulary:
    """Base classes named in place, or a vocabulary file, which may have novel ones too."""
    if not given.startswith(BASE_SIGN):
        return Vocabulary.from_file(given)
    names = [word.strip() for word in given.removeprefix(BASE_SIGN).split(",") if word.strip()]
    if not names:
        raise ValueError(f"{given!r} names no base class; expected base=NAME,NAME")
    return Vocabulary.from_names(names)


def _check_base(base: set[str], source: str, json_file: Path, names: list[str]) -> None:
    strangers = sorted(base.difference(names))
    if strangers:
        near = difflib.get_close_matches(strangers[0], names, n=1)
        hint = f"; {near[0]!r} is" if near else f", such as {names[0]!r}"
        raise ValueError(
            f"base class {strangers[0]!r} of {source} is none of the {len(names)} categories "
            f"of {json_file}{hint}"
        )


_pictures_of_shards = partial(_register_shards, shard_records)
_captions_of_shards = partial(_register_shards, shard_caption_records)
_WITH_BASE = "coco_json:FILE.json:FOLDER[:BASE.txt|:base=NAME,NAME]"
# By kind: what registers it, called with the name and the paths; its form; numbers of paths.
KINDS: dict[str, tuple[Callable[..., None], str, tuple[int, ...]]] = {
    "images": (_register_pictures, "images:FOLDER or images:LIST.txt", (1,)),
    "coco_images": (_register_coco_images, "coco_images:FILE.json:FOLDER", (2,)),
    "webdataset": (_pictures_of_shards, "webdataset:SHARD-{000..331}.tar", (1,)),
    "coco_json": (_register_coco_json, _WITH_BASE, (2, 3)),
    "panoptic": (_register_panoptic, "panoptic:FILE.json:MAPS:FOLDER", (3,)),
    "sem_seg": (_register_sem_seg, "sem_seg:IMAGES:LABELS:CLASSES.json", (3,)),
    "captions": (_register_captions, "captions:FILE.json|tsv|csv:FOLDER", (2,)),
    "captions_webdataset": (_captions_of_shards, "captions_webdataset:SHARD-{000..331}.tar", (1,)),
}
