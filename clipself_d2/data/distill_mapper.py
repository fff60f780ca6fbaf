"""From a data set's record to a student's image, its regions, and the teacher's crops."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipself_d2.data.datasets.validate import read_annotation_file
from clipself_d2.data.pictures import cut_crops, fit_longest, read_picture, to_tensor
from clipself_d2.data.regions import (
    clip_boxes,
    enlarge_boxes,
    fallback_box,
    sample_grid_boxes,
    sample_proposals,
)

logger = logging.getLogger(__name__)

REGION_SOURCES = ("grid", "proposals", "both")


class ProposalFile:
    """Class-agnostic boxes of a COCO-format file, by image id.

    Args:
        path: The file; category ids are ignored.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not JSON, lacks ``annotations`` or has no box.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        remedy = "write it with tools/make_proposals.py and set MODEL.DISTILL.PROPOSAL_FILE"
        if not self.path:
            raise ValueError(f"MODEL.DISTILL.PROPOSAL_FILE is empty; {remedy}")
        document = read_annotation_file(path, ("annotations",), remedy=remedy)
        by_image: dict[object, list[list[float]]] = {}
        for row in document["annotations"]:
            x, y, width, height = row["bbox"]
            by_image.setdefault(row["image_id"], []).append([x, y, x + width, y + height])
        if not by_image:
            raise ValueError(f"proposal file {path} has no box; {remedy}")
        self._boxes = {key: np.array(boxes, np.float64) for key, boxes in by_image.items()}

    def __contains__(self, image_id: object) -> bool:
        """Tell whether an image has a box."""
        return image_id in self._boxes

    def boxes(self, image_id: object) -> np.ndarray:
        """Look up the boxes of an image.

        Args:
            image_id: Id as in the data set.

        Returns:
            (R, 4) XYXY px; R may be 0.
        """
        return self._boxes.get(image_id, np.zeros((0, 4)))

    def check_images(self, image_ids: list[object]) -> None:
        """Refuse a file of another data set.

        Args:
            image_ids: Ids of the training images.

        Raises:
            ValueError: If no image has a box.
        """
        covered = sum(image_id in self for image_id in image_ids)
        if covered == 0:
            raise ValueError(
                f"proposal file {self.path} has no box for any of the {len(image_ids)} training "
                "images; make it for DATASETS.TRAIN with tools/make_proposals.py --dataset"
            )
        if covered < len(image_ids):
            logger.warning("%d images have no proposal", len(image_ids) - covered)


class DistillMapper:
    """Maps a record and a random generator to a training item.

    Args:
        regions: "grid", "proposals" or "both".
        proposals: Boxes for the last two.
        image_size: Longest side of the student's image, px.
        crop_size: Side of the teacher's crops, px.
        max_split: Most rows or columns of a grid.
        max_boxes: Most regions of each source.
        box_size_range: Square roots of the least and largest area of a proposal, px.
        crop_enlarge: Factor of the teacher's crop of a proposal.

    Raises:
        ValueError: If the source is unknown or proposals lack.
    """

    def __init__(
        self,
        *,
        regions: str,
        proposals: ProposalFile | None,
        image_size: int,
        crop_size: int,
        max_split: int,
        max_boxes: int,
        box_size_range: tuple[float, float],
        crop_enlarge: float,
    ) -> None:
        if regions not in REGION_SOURCES:
            raise ValueError(
                f"regions are {regions!r}; MODEL.DISTILL.REGIONS is one of {REGION_SOURCES}"
            )
        if regions != "grid" and proposals is None:
            raise ValueError(f"regions {regions!r} need MODEL.DISTILL.PROPOSAL_FILE")
        self.regions = regions
        self.proposals = proposals
        self.image_size, self.crop_size = image_size, crop_size
        self.max_split, self.max_boxes = max_split, max_boxes
        self.box_size_range = box_size_range
        self.crop_enlarge = crop_enlarge

    def __call__(self, record: Mapping[str, object], rng: np.random.Generator) -> dict[str, object]:
        """Read the picture once and cut everything from it.

        Args:
            record: Detectron2's record with ``file_name`` and ``image_id``.
            rng: Source of all randomness.

        Returns:
            ``image`` (3, h, w) uint8 with the longest side ``image_size``; ``boxes`` (R, 4)
            float32 XYXY px of that image; ``crops`` (R, 3, s, s) uint8 cut from the original;
            ``file_name``, ``image_id``, and ``height`` and ``width`` of the original.
        """
        picture = read_picture(str(record["file_name"]))
        width, height = picture.size
        boxes, crop_boxes = self._draw(record["image_id"], width, height, rng)
        student = fit_longest(picture, self.image_size)
        return {
            "image": to_tensor(student),
            "boxes": scale_boxes(boxes, picture.size, student.size),
            "crops": cut_crops(picture, crop_boxes, self.crop_size),
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "height": height,
            "width": width,
        }

    def _draw(
        self, image_id: object, width: int, height: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        boxes, crops = [], []
        if self.regions != "proposals":
            tiles = sample_grid_boxes(
                rng, width, height, max_split=self.max_split, max_boxes=self.max_boxes
            )
            boxes.append(tiles)
            crops.append(tiles)
        if self.proposals is not None and self.regions != "grid":
            found = clip_boxes(self.proposals.boxes(image_id), width, height)
            drawn = sample_proposals(
                rng, found, size_range=self.box_size_range, max_boxes=self.max_boxes
            )
            if not len(drawn) and self.regions == "proposals":
                drawn = fallback_box(width, height)
            boxes.append(drawn)
            crops.append(enlarge_boxes(drawn, self.crop_enlarge, width, height))
        return np.concatenate(boxes), np.concatenate(crops)


def scale_boxes(boxes: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Carry boxes from a picture to its scaled copy.

    Args:
        boxes: (R, 4) XYXY px of the picture.
        old: (width, height) of the picture.
        new: (width, height) of the copy.

    Returns:
        (R, 4) float32 XYXY px of the copy; both axes use the scale of the longest side.
    """
    scale = max(new) / max(old)
    return torch.from_numpy(boxes * scale).float()
