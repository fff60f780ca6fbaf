"""Scenes as rows of the standard annotation formats: COCO, LVIS v1 and COCO panoptic.

Legend: H W pixels of the scene.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipself_d2.apps.emoji.polygons import mask_to_polygons
from clipself_d2.apps.emoji.scenes import Scene, tight_box
from clipself_d2.data.datasets.emoji_world import World

# Panoptic segment id = category id x this + number of the segment within its category.
SEGMENT_DIVISOR = 1000
DESCRIPTION = "Emoji scenes: a rendered open world of things on stuff textures"
LICENSES = (
    ("Noto Color Emoji: pictures Apache-2.0, font OFL-1.1", "github.com/googlefonts/noto-emoji"),
    ("Twemoji: CC-BY-4.0", "github.com/twitter/twemoji"),
    ("Fluent Emoji: MIT", "github.com/microsoft/fluentui-emoji"),
)


# A row, or a whole file, as json takes it. Boxes are XYWH px, areas visible pixels.
Row = dict[str, Any]


def file_header() -> Row:
    """Return the entries that all formats share, ``info`` and ``licenses``."""
    licenses = [
        {"id": number, "name": name, "url": url} for number, (name, url) in enumerate(LICENSES, 1)
    ]
    return {"info": {"description": DESCRIPTION, "version": "1.0"}, "licenses": licenses}


def image_row(scene: Scene, image_id: int) -> Row:
    """Describe the image of a scene; the file is named by twelve digits, as in COCO."""
    height, width = scene.image.shape[:2]
    return {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height}


def instance_rows(scene: Scene, image_id: int, first_id: int, world: World) -> list[Row]:
    """Describe the things of a scene in their order, numbered from ``first_id``."""
    rows = []
    for number, thing in enumerate(scene.objects):
        mask = scene.instance_map == number + 1
        rows.append(
            {
                "id": first_id + number,
                "image_id": image_id,
                "category_id": world.things[thing.thing].id,
                "bbox": _to_xywh(thing.box),
                "area": int(mask.sum()),
                "segmentation": mask_to_polygons(mask),
                "iscrowd": 0,
            }
        )
    return rows


def thing_categories(world: World) -> list[Row]:
    """List the things as COCO categories, by id."""
    return [
        {"id": thing.id, "name": thing.name, "supercategory": thing.group} for thing in world.things
    ]


def base_only(instances: Row, world: World) -> Row:
    """Take the novel classes out of a training file, as the open-vocabulary protocols do.

    Images without another annotation go with them; all categories stay listed.
    """
    novel = {thing.id for thing in world.things if thing.frequency == "r"}
    rows = [row for row in instances["annotations"] if row["category_id"] not in novel]
    shown = {row["image_id"] for row in rows}
    images = [row for row in instances["images"] if row["id"] in shown]
    return {**instances, "images": images, "annotations": rows}


def to_lvis(
    instances: Row,
    world: World,
    *,
    counted: Sequence[Row],
    split: str,
    annotated: Sequence[str] = ("f", "c", "r"),
) -> Row:
    """Turn a COCO instance file into an LVIS v1 file.

    Every scene is labelled completely, so ``not_exhaustive_category_ids`` is empty and
    ``neg_category_ids`` holds all annotated classes that the image lacks: a detection of any absent
    class is a false positive, as in COCO. A file without novel annotations says nothing about novel
    classes, neither positive nor negative.

    Args:
        instances: The COCO file.
        world: The classes, with their frequency.
        counted: Instances of the whole training set; ``image_count`` and ``instance_count`` of all
            files are theirs, as in LVIS.
        split: Folder of the images; LVIS readers take it from ``coco_url``.
        annotated: Frequencies of the classes that the file annotates.
    """
    labelled = {thing.id for thing in world.things if thing.frequency in annotated}
    positive: dict[int, set[int]] = {row["id"]: set() for row in instances["images"]}
    for row in instances["annotations"]:
        positive[row["image_id"]].add(row["category_id"])
    images = [
        {
            **row,
            "coco_url": f"emoji/{split}/{row['file_name']}",
            "neg_category_ids": sorted(labelled - positive[row["id"]]),
            "not_exhaustive_category_ids": [],
        }
        for row in instances["images"]
    ]
    return {**instances, "images": images, "categories": _lvis_categories(world, counted)}


def _lvis_categories(world: World, counted: Sequence[Row]) -> list[Row]:
    instance_count = Counter(row["category_id"] for row in counted)
    pairs = {(row["image_id"], row["category_id"]) for row in counted}
    image_count = Counter(category_id for _, category_id in pairs)
    return [
        {
            "id": thing.id,
            "name": thing.name,
            "synonyms": [thing.name],
            "synset": f"{thing.name.replace(' ', '_')}.n.01",
            "frequency": thing.frequency,
            "image_count": image_count[thing.id],
            "instance_count": instance_count[thing.id],
        }
        for thing in world.things
    ]


def panoptic_categories(world: World) -> list[Row]:
    """List things, then stuff, as COCO panoptic categories, by id."""
    stuff = zip(world.stuff_ids, world.stuff, strict=True)
    return [{**row, "isthing": 1} for row in thing_categories(world)] + [
        {"id": number, "name": name, "supercategory": "stuff", "isthing": 0}
        for number, name in stuff
    ]


def panoptic_row(scene: Scene, image_id: int, world: World) -> tuple[Row, np.ndarray]:
    """Describe things and visible stuff of a scene; every pixel belongs to one segment.

    Returns:
        The row and the picture of segment ids, (H, W, 3) uint8 RGB.
    """
    ids = np.zeros(scene.instance_map.shape, np.int32)
    segments: list[Row] = []
    seen: Counter[int] = Counter()

    def add(category_id: int, mask: np.ndarray) -> None:
        segment_id = category_id * SEGMENT_DIVISOR + seen[category_id]
        seen[category_id] += 1
        ids[mask] = segment_id
        segments.append(
            {
                "id": segment_id,
                "category_id": category_id,
                "area": int(mask.sum()),
                "bbox": _to_xywh(tight_box(mask)),
                "iscrowd": 0,
            }
        )

    for number, thing in enumerate(scene.objects):
        add(world.things[thing.thing].id, scene.instance_map == number + 1)
    bare = scene.instance_map == 0
    for stuff in np.unique(scene.stuff_map[bare]):
        add(world.stuff_ids[int(stuff)], bare & (scene.stuff_map == stuff))
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    name = f"{image_id:012d}.png"
    return {"image_id": image_id, "file_name": name, "segments_info": segments}, colors


def _to_xywh(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
