"""Detections of many pictures in one file of COCO's form."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask as mask_coder

from clipself_d2.parts.json_file import write_json


class DetectionFile:
    """Collects detections; COCO's tools open the file as a data set with scored annotations.

    Args:
        names: Class names; category n + 1 is class n.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, found: Instances, **more: object) -> None:
        """Add a picture, also one without detections, which are in its pixels.

        ``file_name`` is its path, or that of its video; ``more`` are further fields, such as
        ``frame``.
        """
        rows = instances_to_coco_json(found.to("cpu"), 0)
        for row in rows:
            width, height = row["bbox"][2:]
            # Of the box before it is rounded.
            row |= {"area": round(width * height, 2), "score": round(row["score"], 5)}
            row["bbox"] = [round(side, 2) for side in row["bbox"]]
        self.add_rows(file_name, rows, found.image_size, **more)

    def add_rows(
        self,
        file_name: str,
        rows: Sequence[Mapping[str, Any]],
        size: tuple[int, int],
        **more: object,
    ) -> None:
        """Add a picture of (height, width) by rows as Detectron2 makes them, classes from 0."""
        height, width = size
        number = len(self.images) + 1
        self.images.append(
            {"id": number, "file_name": file_name, "width": width, "height": height, **more}
        )
        for row in rows:
            area = row.get("area", round(row["bbox"][2] * row["bbox"][3], 2))
            if "segmentation" in row:
                area = int(mask_coder.area(row["segmentation"]))
            own = {"id": len(self.annotations) + 1, "image_id": number, "iscrowd": 0}
            own |= {"category_id": row["category_id"] + 1, "area": area}
            self.annotations.append({**row, **own})

    def save(self, path: Path) -> None:
        """Write the json file."""
        content = {
            "images": self.images,
            "categories": [{"id": i, "name": name} for i, name in enumerate(self.names, 1)],
            "annotations": self.annotations,
        }
        write_json(path, content, indent=1)
