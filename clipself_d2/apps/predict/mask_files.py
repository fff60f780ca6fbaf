"""Masks that another model has made, in the three forms in which they come.

Legend: Q masks of a picture, H W pixels.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from clipself_d2.data.pictures import read_picture
from clipself_d2.parts.label_maps import (
    check_segments,
    read_label_map,
    read_segment_colours,
    segment_ids,
)

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
KINDS = ("panoptic", "results", "maps")


@dataclass(frozen=True)
class MaskedPicture:
    """A picture and its masks.

    Attributes:
        path: The picture.
        image_id: Its id in the file of masks, or its name.
        rows: What the file says of each mask, a mapping of its own.
        load: Gives the masks, (Q, H, W) bool, in the order of ``rows``.
    """

    path: Path
    image_id: int | str
    rows: Sequence[Mapping[str, Any]]
    load: Callable[[], np.ndarray]


def read_mask_file(
    source: Path, images: Path, maps: Path | None = None
) -> tuple[str, list[MaskedPicture]]:
    """List pictures with the masks of another model, and say which of ``KINDS`` the file is.

    Args:
        source: A COCO panoptic json file, a json list of COCO results with ``segmentation`` as
            run-length masks, or a folder of PNGs named as the pictures are: of class labels or
            numbers, every value but 0 and 255 a mask, or in COCO's panoptic colours.
        images: Folder of the pictures, named as the json file says or, in results, by their ids.
        maps: Folder of a panoptic file's PNGs; None is the folder of its name beside it.
    """
    for path in (source, images, *([maps] if maps else [])):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
    pictures = {p.stem: p for p in sorted(images.rglob("*")) if p.suffix.lower() in PICTURES}
    if source.is_dir():
        return "maps", _from_maps(source, pictures)
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source} is no json file ({error})") from error
    if isinstance(content, dict) and "annotations" in content:
        return "panoptic", _from_panoptic(content, maps or source.with_suffix(""), pictures)
    if isinstance(content, list) and all("segmentation" in row for row in content):
        return "results", _from_results(content, source, pictures)
    raise ValueError(
        f"{source} is neither a COCO panoptic file (an object with annotations) nor a list of COCO "
        "results with segmentation"
    )


def _find(stems: Sequence[str], pictures: Mapping[str, Path], source: str) -> Path:
    for stem in stems:
        if stem in pictures:
            return pictures[stem]
    raise ValueError(
        f"{source} speaks of the picture {stems[0]!r}, which is not in the folder of --images"
    )


def _from_panoptic(
    content: dict[str, Any], maps: Path, pictures: Mapping[str, Path]
) -> list[MaskedPicture]:
    found = []
    for row in content["annotations"]:
        path = maps / row["file_name"]

        def load(path: Path = path, rows: Sequence[Mapping] = row["segments_info"]) -> np.ndarray:
            ids = segment_ids(read_segment_colours(str(path)))
            check_segments(ids, rows, str(path))
            return _split(ids, [row["id"] for row in rows])

        picture = _find([Path(row["file_name"]).stem], pictures, "the panoptic file")
        found.append(MaskedPicture(picture, row["image_id"], row["segments_info"], load))
    return found


def _from_results(
    content: list[dict[str, Any]], source: Path, pictures: Mapping[str, Path]
) -> list[MaskedPicture]:
    groups: dict[int | str, list[dict[str, Any]]] = {}
    for row in content:
        groups.setdefault(row["image_id"], []).append(row)
    found = []
    for image_id, rows in groups.items():

        def load(rows: Sequence[Mapping[str, Any]] = rows) -> np.ndarray:
            masks = rle.decode([_encoded(row["segmentation"]) for row in rows])
            decoded: np.ndarray = masks.transpose(2, 0, 1).astype(bool)
            return decoded

        name = str(image_id)
        stems = [name, f"{image_id:012d}"] if isinstance(image_id, int) else [name]
        found.append(MaskedPicture(_find(stems, pictures, str(source)), image_id, rows, load))
    return found


def _encoded(segmentation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Compressed form of a run-length mask, whichever of the two it has."""
    if isinstance(segmentation.get("counts"), list):
        height, width = segmentation["size"]
        encoded: Mapping[str, Any] = rle.frPyObjects(dict(segmentation), height, width)
        return encoded
    return segmentation


def _from_maps(folder: Path, pictures: Mapping[str, Path]) -> list[MaskedPicture]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".tif"))
    files = [path for path in files if not path.name.startswith("._")]
    if not files:
        raise ValueError(f"there is no png or tif in {folder}")
    found = []
    for path in files:
        ids = _read_ids(path)
        values = [int(value) for value in np.unique(ids) if value not in (0, 255, 65535)]

        def load(path: Path = path, values: Sequence[int] = values) -> np.ndarray:
            return _split(_read_ids(path), values)

        rows = [{"id": value} for value in values]
        found.append(MaskedPicture(_find([path.stem], pictures, str(path)), path.stem, rows, load))
    return found


def _read_ids(path: Path) -> np.ndarray:
    try:
        return read_label_map(str(path))
    except ValueError:
        return segment_ids(read_segment_colours(str(path)))


def _split(ids: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """(Q, H, W) masks of the values; Q may be 0."""
    return ids == np.array(values, np.int64)[:, None, None]


def check_sizes(picture: MaskedPicture, masks: np.ndarray) -> np.ndarray:
    """Read a picture, (H, W, 3) uint8 RGB, which must have the size of its (Q, H, W) masks."""
    pixels = np.asarray(read_picture(picture.path))
    if pixels.shape[:2] != masks.shape[1:]:
        raise ValueError(
            f"masks for {picture.path} are {masks.shape[2]} x {masks.shape[1]} px, the picture is "
            f"{pixels.shape[1]} x {pixels.shape[0]}"
        )
    return pixels
