"""Fixtures of data sets: restored catalogs and small files in the official formats."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image


@pytest.fixture
def catalogs() -> Iterator[None]:
    """Forget what a test registers."""
    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before[0]:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog.list()) - before[1]:
        MetadataCatalog.remove(name)


@pytest.fixture
def write_picture() -> Callable[..., Path]:
    """Function that writes a small picture of one colour."""

    def write(path: Path, size: tuple[int, int] = (40, 30), colour: int = 90) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (colour, 0, 255 - colour)).save(path)
        return path

    return write


@pytest.fixture
def write_shard() -> Callable[..., Path]:
    """Function that writes a tar file of members, bytes by name."""

    def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
        with tarfile.open(path, mode) as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def jpeg() -> Callable[[int], bytes]:
    """Function that encodes a picture of 20 x 10 px of one red."""

    def encode(red: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (20, 10), (red, 0, 0)).save(stream, "JPEG")
        return stream.getvalue()

    return encode


@pytest.fixture
def coco_root(tmp_path: Path, write_picture: Callable[..., Path]) -> Path:
    """COCO 2017 with six training and three validation images, and all 80 categories.

    Training image 1 has a dog (novel) and a person, 2 a dog alone, 3 a person alone, 4 a teddy
    bear (neither), 5 nothing, 6 a zebra; validation image 11 a dog, 12 a teddy bear, 13 a zebra.
    """
    root = tmp_path / "data"
    things = [row for row in COCO_CATEGORIES if row["isthing"]]
    ids = {row["name"]: row["id"] for row in things}
    contents = {
        "train": [(1, "dog"), (1, "person"), (2, "dog"), (3, "person"), (4, "teddy bear")]
        + [(5, None), (6, "zebra")],
        "val": [(11, "dog"), (12, "teddy bear"), (13, "zebra")],
    }
    for split, objects in contents.items():
        numbers = sorted({number for number, _ in objects})
        document = {
            "info": {"year": 2017},
            "licenses": [{"id": 1, "name": 'a, "b" [c] {d}'}],
            "images": [
                {
                    "license": 1,
                    "file_name": f"{number:012d}.jpg",
                    "coco_url": f"http://images.cocodataset.org/{split}2017/{number:012d}.jpg",
                    "id": number,
                    "width": 40,
                    "height": 30,
                }
                for number in numbers
            ],
            "annotations": [
                {
                    "segmentation": [[1.5, 2, 11.25, 2, 11.25, 22, 1.5, 22]],
                    "area": 195.0,
                    "iscrowd": 0,
                    "image_id": image_id,
                    "bbox": [1.5, 2, 9.75, 20],
                    "category_id": ids[name],
                    "id": 100 + number,
                }
                for number, (image_id, name) in enumerate(objects)
                if name
            ],
            "categories": [
                {"supercategory": "x", "id": row["id"], "name": row["name"]} for row in things
            ],
        }
        file = root / "coco" / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
        for number in numbers:
            write_picture(root / "coco" / f"{split}2017" / f"{number:012d}.jpg")
    return root


@pytest.fixture
def lvis_root(tmp_path: Path, write_picture: Callable[..., Path]) -> Path:
    """LVIS v1 in miniature, without ``file_name``; two images a split.

    Each has objects of the classes 1 (common), 3 (frequent) and 13 (rare). Validation image 21
    lies in COCO's train2017, 22 in its val2017.
    """
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    root = tmp_path / "data"
    for split, places in {
        "train": {1: "train2017", 2: "train2017"},
        "val": {21: "train2017", 22: "val2017"},
    }.items():
        document = {
            "info": {},
            "annotations": [
                {
                    "id": 10 * image_id + number,
                    "image_id": image_id,
                    "category_id": number,
                    "bbox": [1, 2, 10, 20],
                    "area": 200.0,
                    "segmentation": [[1, 2, 11, 2, 11, 22, 1, 22]],
                }
                for image_id in places
                for number in (1, 3, 13)
            ],
            "images": [
                {
                    "id": image_id,
                    "width": 40,
                    "height": 30,
                    "coco_url": f"http://images.cocodataset.org/{place}/{image_id:012d}.jpg",
                    "neg_category_ids": [5],
                    "not_exhaustive_category_ids": [],
                }
                for image_id, place in places.items()
            ],
            "licenses": [],
            "categories": [{**row, "image_count": 1} for row in LVIS_CATEGORIES],
        }
        file = root / "lvis" / f"lvis_v1_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
        for image_id, place in places.items():
            write_picture(root / "coco" / place / f"{image_id:012d}.jpg")
    return root
