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
from clipself_d2.data.datasets.coco_panoptic import register_panoptic_file
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
        kind, colon, rest = name.partition(":")
        if not colon or name in DatasetCatalog.list():
            continue
        if kind not in KINDS:
            raise ValueError(
                f"data set {name!r} is of the kind {kind!r}, expected one of "
                f"{', '.join(FORMS.values())}"
            )
        KINDS[kind](name, rest)
    return tuple(names)


def folder_name(name: str) -> str:
    """Turn a data set's name into the name of a folder for its results.

    A specification becomes its kind, the stem of its first path, and eight hex digits that tell it
    from others.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{kind}_{Path(rest.partition(':')[0]).stem}_{digest}"


def _register(name: str, load: Callable[[], list[Record]], image_root: Path) -> None:
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(image_root=str(image_root))


def _register_pictures(name: str, rest: str) -> None:
    path = _parts(name, rest, 1, 1)[0]
    if not path.exists():
        raise FileNotFoundError(f"data set {name!r}: {path} does not exist")
    if path.is_dir():
        _register(name, partial(folder_records, path), path)
    else:
        _register(name, partial(list_records, path), path.parent)


def _register_shards(read: Callable[[str], list[Record]], name: str, pattern: str) -> None:
    if not pattern:
        form = FORMS[name.partition(":")[0]]
        raise ValueError(f"data set {name!r} names no shard; expected {form}")
    _register(name, partial(read, pattern), expand_shards(pattern)[0].parent)


def _register_coco_images(name: str, rest: str) -> None:
    json_file, image_root = _parts(name, rest, 2, 2)
    _check_paths(name, json_file, image_root)
    register_images(name, json_file=json_file, image_root=image_root, remedy=REMEDY)


def _register_coco_json(name: str, rest: str) -> None:
    json_file, image_root, *given = _parts(name, rest, 2, 3)
    _check_paths(name, json_file, image_root)
    categories = _read_categories(json_file)
    metadata = class_metadata(categories)
    if given:
        names = metadata["thing_classes"]
        vocabulary = _read_classes(str(given[0]))
        base = set(vocabulary.names) - set(vocabulary.novel_names)
        _check_base(base, str(given[0]), json_file, names)
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


def _register_panoptic(name: str, rest: str) -> None:
    json_file, png_root, image_root = _parts(name, rest, 3, 3)
    _check_paths(name, json_file, image_root)
    _check_paths(name, json_file, png_root)
    register_panoptic_file(
        name, json_file=json_file, image_root=image_root, png_root=png_root, remedy=REMEDY
    )


def _register_sem_seg(name: str, rest: str) -> None:
    image_root, label_root, classes = _parts(name, rest, 3, 3)
    register_semantic(
        name, image_root=image_root, label_root=label_root, classes_file=classes, remedy=REMEDY
    )


def _register_captions(name: str, rest: str) -> None:
    file, image_root = _parts(name, rest, 2, 2)
    _check_paths(name, file, image_root)
    _register(name, partial(caption_file_records, file, image_root), image_root)


def _parts(name: str, rest: str, fewest: int, most: int) -> list[Path]:
    parts = rest.split(":")
    if not fewest <= len(parts) <= most or not all(parts):
        raise ValueError(
            f"data set {name!r} has {len(parts)} paths after its kind; expected "
            f"{FORMS[name.partition(':')[0]]}"
        )
    return [Path(part).expanduser() for part in parts]


def _check_paths(name: str, file: Path, image_root: Path) -> None:
    if not file.is_file():
        raise FileNotFoundError(f"data set {name!r}: annotation file {file} does not exist")
    if not image_root.is_dir():
        raise FileNotFoundError(f"data set {name!r}: image folder {image_root} does not exist")


def _read_categories(json_file: Path) -> dict[int, str]:
    """Names by category id; the whole file is checked on the way."""
    # Reading the records says what was mended.
    rows = check_coco_file(json_file, remedy=REMEDY, quiet=True)["categories"]
    return {row["id"]: row["name"] for row in rows}


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


KINDS: dict[str, Callable[[str, str], None]] = {
    "images": _register_pictures,
    "coco_images": _register_coco_images,
    "webdataset": partial(_register_shards, shard_records),
    "coco_json": _register_coco_json,
    "panoptic": _register_panoptic,
    "sem_seg": _register_sem_seg,
    "captions": _register_captions,
    "captions_webdataset": partial(_register_shards, shard_caption_records),
}
FORMS = {
    "images": "images:FOLDER or images:LIST.txt",
    "coco_images": "coco_images:FILE.json:FOLDER",
    "webdataset": "webdataset:SHARD-{000..331}.tar",
    "coco_json": "coco_json:FILE.json:FOLDER[:BASE.txt|:base=NAME,NAME]",
    "panoptic": "panoptic:FILE.json:MAPS:FOLDER",
    "sem_seg": "sem_seg:IMAGES:LABELS:CLASSES.json",
    "captions": "captions:FILE.json|tsv|csv:FOLDER",
    "captions_webdataset": "captions_webdataset:SHARD-{000..331}.tar",
}
