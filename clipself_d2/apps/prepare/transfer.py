"""COCO files of the transfer sets: Pascal VOC from its XML, Objects365 from its official json."""

import logging
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from clipself_d2.data.datasets.transfer import (
    OBJECTS365_SETS,
    VOC_CLASSES,
    VOC_SETS,
    objects365_names,
    plain_name,
    voc_file,
)
from clipself_d2.data.datasets.validate import check_coco_file
from clipself_d2.parts.json_file import write_json

logger = logging.getLogger(__name__)

# Where the official file of a version may lie, below its folder.
OBJECTS365_SOURCES = {
    "v1": ("objects365_val.json", "annotations/objects365_val.json"),
    "v2": ("zhiyuan_objv2_val.json", "annotations/zhiyuan_objv2_val.json"),
}
# Images that the official annotations of v2 name, but its archives lack.
OBJECTS365_LOST = {
    "patch16/objects365_v2_00908726.jpg",
    "patch6/objects365_v1_00320532.jpg",
    "patch6/objects365_v1_00320534.jpg",
}

Row = dict[str, Any]


def prepare_transfer(root: Path, *, force: bool = False) -> list[Path]:
    """Write the COCO file of every transfer set whose official annotations are there.

    Files that are there are kept, but for ``force``; what was written is returned.
    """
    jobs: list[tuple[Path, Path, Callable[[Path], Row]]] = []
    for folder, split in VOC_SETS.values():
        source = root / folder / "ImageSets" / "Main" / f"{split}.txt"
        jobs += [(source, voc_file(root / folder, split), convert_voc)]
    for version, file, _ in OBJECTS365_SETS.values():
        target = root / file
        for name in OBJECTS365_SOURCES[version]:
            jobs += [(target.parent / name, target, partial(convert_objects365, version=version))]
    found = [job for job in jobs if job[0].is_file()]
    if not found:
        raise FileNotFoundError(
            f"{root} has none of {', '.join(str(job[0].relative_to(root)) for job in jobs)}; "
            "unpack the official archives there, or give another --root"
        )
    written = []
    for source, target, convert in found:
        if target.is_file() and not force:
            logger.info("%s is there; nothing to do", target)
        elif target not in written:
            _write(target, convert(source))
            written.append(target)
    return written


def convert_voc(source: Path) -> Row:
    """Convert a split of Pascal VOC, ``<folder>/ImageSets/Main/<split>.txt``, to COCO.

    Boxes begin at 0 instead of 1; objects marked difficult are ``iscrowd``: COCO's protocol, like
    VOC's, then counts them neither as found nor as missed.
    """
    folder = source.parents[2]
    stems = [line.split()[0] for line in source.read_text().splitlines() if line.strip()]
    document: Row = {
        "info": {"description": f"{folder.name} {source.stem}"},
        "images": [],
        "annotations": [],
        "categories": _categories(VOC_CLASSES.values()),
    }
    numbers = {name: number for number, name in enumerate(VOC_CLASSES, start=1)}
    for stem in stems:
        file = folder / "Annotations" / f"{stem}.xml"
        if not file.is_file():
            raise FileNotFoundError(f"{source} lists {stem}, but {file} is missing")
        try:
            image, objects = _read_voc(file, int(stem.replace("_", "")), numbers)
        except (ET.ParseError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{file} is no annotation of Pascal VOC ({error!r})") from error
        document["images"].append(image)
        for row in objects:
            document["annotations"].append({"id": len(document["annotations"]) + 1, **row})
    return document


def _read_voc(file: Path, image_id: int, numbers: Mapping[str, int]) -> tuple[Row, list[Row]]:
    tree = ET.parse(file).getroot()
    image = {
        "id": image_id,
        "file_name": f"{file.stem}.jpg",
        "width": int(_text(tree, "size/width")),
        "height": int(_text(tree, "size/height")),
    }
    rows = []
    for item in tree.findall("object"):
        left, top, right, bottom = (
            float(_text(item, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        # VOC counts pixels from 1 and includes the last one.
        box = [left - 1, top - 1, right - left + 1, bottom - top + 1]
        rows.append(
            {
                "image_id": image_id,
                "category_id": numbers[_text(item, "name")],
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(item.findtext("difficult", "0")),
            }
        )
    return image, rows


def _text(item: ET.Element, path: str) -> str:
    text = item.findtext(path)
    if text is None:
        raise ValueError(f"it lacks {path}")
    return text.strip()


def convert_objects365(source: Path, version: str) -> Row:
    """Convert the official file of a version, v1 or v2, to COCO.

    Names and order are those of ``objects365_names``; ``file_name`` is ``patch<n>/<name>``, of v1
    the name alone. Images that the official archives lack are left out.
    """
    content = check_coco_file(source, remedy="download it again")
    names = objects365_names(version)
    numbers = {plain_name(name): number for number, name in enumerate(names, start=1)}
    # Files whose misspelt names were set right are taken too.
    numbers |= {plain_name(name): number for number, name in enumerate(names.values(), start=1)}
    by_id: dict[int, int] = {}
    for row in content["categories"]:
        number = numbers.get(plain_name(str(row["name"])))
        if number is None or number in by_id.values():
            fault = "is none of" if number is None else "comes twice among"
            raise ValueError(
                f"{source} has the category {row['name']!r}, which {fault} the 365 of Objects365 "
                f"{version}; download the official file"
            )
        by_id[row["id"]] = number
    images = [
        {
            "id": row["id"],
            "file_name": "/".join(str(row["file_name"]).split("/")[-int(version[1]) :]),
            "width": row["width"],
            "height": row["height"],
        }
        for row in content["images"]
    ]
    images = [row for row in images if row["file_name"] not in OBJECTS365_LOST]
    kept = {row["id"] for row in images}
    rows = [row for row in content["annotations"] if row["image_id"] in kept]
    return {
        "info": {"description": f"Objects365 {version}, from {source.name}"},
        "images": images,
        "annotations": [
            {
                "id": number,
                "image_id": row["image_id"],
                "category_id": by_id[row["category_id"]],
                "bbox": row["bbox"],
                "area": row.get("area", row["bbox"][2] * row["bbox"][3]),
                "iscrowd": row.get("iscrowd", 0),
            }
            for number, row in enumerate(rows, start=1)
        ],
        "categories": _categories(names.values()),
    }


def _categories(names: Iterable[str]) -> list[Row]:
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def _write(target: Path, document: Row) -> None:
    write_json(target, document)
    logger.info(
        "%s: %d images, %d annotations, %d categories",
        target,
        len(document["images"]),
        len(document["annotations"]),
        len(document["categories"]),
    )
