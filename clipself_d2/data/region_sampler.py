"""Regions of one picture for distillation, drawn from a grid, proposals or annotations.

Boxes are XYXY px of the original picture.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipself_d2.data.datasets.validate import read_annotation_rows
from clipself_d2.data.items import Record
from clipself_d2.data.regions import (
    clip_boxes,
    corners_of,
    enlarge_boxes,
    fallback_box,
    random_boxes,
    sample_grid_boxes,
    sample_proposals,
)

logger = logging.getLogger(__name__)

REGION_SOURCES = ("grid", "proposals", "both", "random", "labels")
_XYWH_ABS = 1  # Detectron2's BoxMode of COCO annotations


class ProposalFile:
    """Class-agnostic boxes by image id, from a file in COCO's format.

    Args:
        path: A json file: annotations of a COCO file, whose category ids are ignored, or a list of
            COCO results.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON, lacks ``annotations`` or has no box.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        remedy = "write it with tools/make_proposals.py and set INPUT.REGIONS.PROPOSAL_FILE"
        if not self.path:
            raise ValueError(f"INPUT.REGIONS.PROPOSAL_FILE is empty; {remedy}")
        rows = read_annotation_rows(path, remedy=remedy)
        by_image: dict[object, list[list[float]]] = {}
        for row in rows:
            by_image.setdefault(row["image_id"], []).append(corners_of(row["bbox"]))
        if not by_image:
            raise ValueError(f"proposal file {path} has no box; {remedy}")
        self._boxes = {key: np.array(boxes, np.float64) for key, boxes in by_image.items()}

    def __contains__(self, image_id: object) -> bool:
        """Tell whether an image has a box."""
        return image_id in self._boxes

    def boxes(self, image_id: object) -> np.ndarray:
        """Look up the boxes of an image: (R, 4) XYXY px; R may be 0."""
        return self._boxes.get(image_id, np.zeros((0, 4)))

    def check_images(self, image_ids: list[object]) -> None:
        """Raise a ValueError where no training image has a box, as in files of other data sets."""
        covered = sum(image_id in self for image_id in image_ids)
        if covered == 0:
            raise ValueError(
                f"proposal file {self.path} has no box for any of the {len(image_ids)} training "
                "images; make it for DATASETS.TRAIN with tools/make_proposals.py --dataset"
            )
        if covered < len(image_ids):
            logger.warning("%d images have no proposal", len(image_ids) - covered)


@dataclass(frozen=True)
class DrawnRegions:
    """Regions of one picture.

    Attributes:
        boxes: (R, 4), what the student pools.
        crop_boxes: (R, 4), what the teacher sees.
        classes: (R,) int64 class indices, or None where regions have no class.
    """

    boxes: np.ndarray
    crop_boxes: np.ndarray
    classes: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class RegionSampler:
    """Draws the regions of a picture.

    Attributes:
        source: "grid" (m x n patches), "proposals", "both", "random" (boxes of any place, size and
            shape), or "labels" (the annotations of the data set with their classes, in the order
            of the file).
        proposals: Boxes for "proposals" and "both".
        max_split: Most rows or columns of a grid.
        max_boxes: Most regions of each source.
        box_size_range: Square roots of the least and largest area of a proposal, px.
        crop_enlarge: Factor of the teacher's crop of a proposal.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2 and appendix A.4.
    """

    source: str
    proposals: ProposalFile | None = None
    max_split: int = 6
    max_boxes: int = 20
    box_size_range: tuple[float, float] = (8.0, 1024.0)
    crop_enlarge: float = 1.5

    def draw(self, record: Record, size: tuple[int, int], rng: np.random.Generator) -> DrawnRegions:
        """Draw the regions of a record's picture of (width, height) px.

        There is at least one but for "both" and "labels"; the latter needs ``annotations``.
        """
        if self.source == "labels":
            return self._labelled(record, size)
        boxes, crops = [], []
        # What a seed draws hangs on this order: the grid before proposals.
        if self.source in ("grid", "both"):
            tiles = sample_grid_boxes(
                rng, *size, max_split=self.max_split, max_boxes=self.max_boxes
            )
            boxes.append(tiles)
            crops.append(tiles)
        if self.source != "grid":
            drawn = self._draw_boxes(record, size, rng)
            boxes.append(drawn)
            crops.append(enlarge_boxes(drawn, self.crop_enlarge, *size))
        return DrawnRegions(np.concatenate(boxes), np.concatenate(crops))

    def _draw_boxes(
        self, record: Record, size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        if self.source == "random":
            return random_boxes(
                rng, *size, size_range=self.box_size_range, num_boxes=self.max_boxes
            )
        assert self.proposals is not None, f"source {self.source} draws from proposals"
        found = clip_boxes(self.proposals.boxes(record["image_id"]), *size)
        drawn = sample_proposals(
            rng, found, size_range=self.box_size_range, max_boxes=self.max_boxes
        )
        # With a grid there is a region anyway.
        is_needed = not len(drawn) and self.source == "proposals"
        return fallback_box(*size) if is_needed else drawn

    def _labelled(self, record: Record, size: tuple[int, int]) -> DrawnRegions:
        if "annotations" not in record:
            raise ValueError(
                f"image {record['image_id']} has no annotations, but INPUT.REGIONS.SOURCE is "
                "labels; name a detection data set in DATASETS.TRAIN"
            )
        rows = record["annotations"][: self.max_boxes]
        corners = [
            corners_of(row["bbox"]) if int(row["bbox_mode"]) == _XYWH_ABS else row["bbox"]
            for row in rows
        ]
        boxes = clip_boxes(np.array(corners, np.float64).reshape(-1, 4), *size)
        classes = np.array([row["category_id"] for row in rows], np.int64)
        # Where classes are learned, no teacher looks at crops.
        return DrawnRegions(boxes, boxes, classes)
