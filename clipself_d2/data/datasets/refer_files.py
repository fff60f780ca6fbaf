"""REFER's files: references to objects of COCO, one or more sentences each.

A folder holds ``instances.json`` (COCO) and ``refs(<splitBy>).p``, a pickle of lists, dicts,
strings and numbers; ``refs(<splitBy>).json`` with the same content is read as well. In gRefCOCO's
``grefs(unc).json`` a sentence refers to several objects, or to none: ``ann_id`` is then a list, of
``NO_TARGET`` for none.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipself_d2.clip.weights.plain_pickle import DAMAGE, load_plain_pickle
from clipself_d2.data.datasets.validate import check_images_exist
from clipself_d2.data.items import Record
from clipself_d2.parts.annotation_files import DEFAULT_REMEDY, read_annotation_file

logger = logging.getLogger(__name__)

REF_KEYS = ("ref_id", "ann_id", "image_id", "split", "sentences")
# Number of an annotation that stands for none, where a sentence refers to nothing.
NO_TARGET = -1
TRAIN_SPLIT = "train"


def read_refs(path: str | Path, *, remedy: str = DEFAULT_REMEDY) -> list[Record]:
    """Read the references of all splits: rows with the keys ``REF_KEYS`` at least.

    The path is ``refs(<splitBy>).p``, or its twin ending in .json; where one is missing, the other
    is read. A FileNotFoundError or ValueError says what is missing, damaged, more than plain data,
    or of another type.
    """
    path = Path(path)
    twins = [path, path.with_suffix(".json" if path.suffix == ".p" else ".p")]
    found = next((twin for twin in twins if twin.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"neither {twins[0]} nor {twins[1].name} exists; {remedy}")
    try:
        if found.suffix == ".json":
            rows = json.loads(found.read_text(encoding="utf-8"))
        else:
            with found.open("rb") as stream:
                # No names: nothing of the file may ask for a class or a function.
                rows = load_plain_pickle(stream, names={})
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{found} cannot be read as plain data ({reason}); {remedy}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{found} holds a {type(rows).__name__}, expected rows; {remedy}")
    for number, row in enumerate(rows):
        lacking = [key for key in REF_KEYS if key not in row]
        if lacking:
            raise ValueError(f"{found} lacks the key {lacking[0]!r} in entry {number}; {remedy}")
        fault = _fault(row)
        if fault:
            raise ValueError(f"{found}: {fault} in entry {number}; {remedy}")
    return rows


def _fault(row: Mapping[str, Any]) -> str:
    """Say what of a row has another type than it needs, or nothing."""
    ids, sentences = row["ann_id"], row["sentences"]
    if not all(isinstance(i, int) for i in (row["image_id"], *_listed(ids))):
        return f"image_id {row['image_id']!r} and ann_id {ids!r} are no whole numbers"
    if not isinstance(row["split"], str):
        return f"split {row['split']!r} is no text"
    if not isinstance(sentences, list) or not sentences:
        return f"sentences {sentences!r} is no list with a sentence"
    for sentence in sentences:
        if not isinstance(sentence, dict) or not isinstance(sentence.get("sent"), str):
            return f"{sentence!r} has no text 'sent'"
    return ""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def in_split(row: Mapping[str, Any], split: str) -> bool:
    """Tell whether a row of ``read_refs`` belongs to train, val, test, testA, testB or testC.

    A test split of a letter is found by that letter, since rows of several name them together; test
    holds all of them.
    """
    own = str(row["split"])
    if split == "test":
        return split in own
    if split.startswith("test"):
        # testAB belongs to testA and to testB.
        return own.startswith("test") and split.removeprefix("test") in own.removeprefix("test")
    return own == split


def load_refer(
    refs_file: str | Path,
    instances_file: str | Path,
    image_root: str | Path,
    split: str,
    *,
    remedy: str = DEFAULT_REMEDY,
) -> list[Record]:
    """Join references with their objects and images.

    Args:
        refs_file: As of ``read_refs``.
        instances_file: COCO file of the objects.
        image_root: Folder of the images.
        split: As of ``in_split``.
        remedy: What the user can do about a fault, an imperative clause.

    Returns:
        Of the split train one record a reference with ``sentences``, a list of strings; of other
        splits one record a sentence with ``sentence`` and ``sent_id``, those of an image in a row.
        All have ``file_name``, ``height``, ``width``, ``image_id``, ``ref_id``, ``ann_id``,
        ``category_id`` and ``segmentations``, COCO segmentations whose union is the mask: one, or
        none where the sentence refers to nothing. The file name is that of the COCO file; the one
        in the references has a suffix.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or no reference is left.
    """
    document = read_annotation_file(instances_file, ("images", "annotations"), remedy=remedy)
    images = {row["id"]: row for row in document["images"]}
    objects = {row["id"]: row for row in document["annotations"]}
    rows = [row for row in read_refs(refs_file, remedy=remedy) if in_split(row, split)]
    joined = (_join(row, images, objects, Path(image_root)) for row in rows)
    records = [record for record in joined if record is not None]
    if len(records) < len(rows):
        lost = f"{len(rows) - len(records)} of {len(rows)} references of {split}"
        logger.warning("%s have no image or object in %s and are skipped", lost, instances_file)
    if not records:
        raise ValueError(f"{refs_file} has no usable reference of the split {split!r}; {remedy}")
    check_images_exist(dict.fromkeys(row["file_name"] for row in records), remedy=remedy)
    logger.info("%d references in the split %s of %s", len(records), split, refs_file)
    if split == TRAIN_SPLIT:
        for record in records:
            record["sentences"] = [str(row["sent"]) for row in record["sentences"]]
        return records
    # Sentences of an image in a row share its features in a batch.
    records.sort(key=lambda record: (str(record["file_name"]), record["ref_id"]))
    return list(_one_a_sentence(records))


def _join(
    row: Record, images: Mapping[int, Record], objects: Mapping[int, Record], image_root: Path
) -> Record | None:
    ids = [number for number in _listed(row["ann_id"]) if number != NO_TARGET]
    image = images.get(row["image_id"])
    if image is None or any(number not in objects for number in ids):
        return None
    return {
        "file_name": str(image_root / image["file_name"]),
        "height": image["height"],
        "width": image["width"],
        "image_id": row["image_id"],
        "ref_id": row["ref_id"],
        "ann_id": row["ann_id"],
        "category_id": row.get("category_id"),
        "segmentations": [objects[number]["segmentation"] for number in ids],
        "sentences": row["sentences"],
    }


def _one_a_sentence(records: Iterable[Record]) -> Iterable[Record]:
    for record in records:
        shared = {key: value for key, value in record.items() if key != "sentences"}
        for row in record["sentences"]:
            yield {**shared, "sentence": str(row["sent"]), "sent_id": row.get("sent_id")}
