"""From a data set's record to a student's image, its regions, and the teacher's crops."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from clipself_d2.data.pictures import cut_crops, cut_pieces, fit_longest, read_picture, to_tensor
from clipself_d2.data.region_sampler import RegionSampler

CROP_RESIZERS = ("device", "pil")


class DistillMapper:
    """Maps a record and a random generator to a training item.

    Args:
        sampler: Draws the regions.
        image_size: Longest side of the student's image, px.
        crop_size: Side of the teacher's crops, px.
        crop_resizer: "device" hands the crops on as they are cut, for ``layers.resize_crops``;
            "pil" resizes them here.
        whole_image: Whether to add a crop of the whole picture, for the image-level loss.

    Raises:
        ValueError: If the resizer is unknown.
    """

    def __init__(
        self,
        *,
        sampler: RegionSampler,
        image_size: int,
        crop_size: int,
        crop_resizer: str = "pil",
        whole_image: bool = False,
    ) -> None:
        if crop_resizer not in CROP_RESIZERS:
            raise ValueError(
                f"crops are resized by {crop_resizer!r}; INPUT.REGIONS.CROP_RESIZER is one of "
                f"{CROP_RESIZERS}"
            )
        self.sampler = sampler
        self.image_size, self.crop_size = image_size, crop_size
        self.crop_resizer = crop_resizer
        self.whole_image = whole_image

    def __call__(
        self,
        record: Mapping[str, object],
        rng: np.random.Generator,
        image_size: int | None = None,
    ) -> dict[str, object]:
        """Read the picture once and cut everything from it.

        Args:
            record: Detectron2's record with ``file_name`` and ``image_id``.
            rng: Source of all randomness.
            image_size: Longest side of the student's image, px, instead of the mapper's own.

        Returns:
            ``image`` (3, h, w) uint8 with the longest side ``image_size``; ``boxes`` (R, 4)
            float32 XYXY px of that image; ``file_name``, ``image_id``, and ``height`` and
            ``width`` of the original. Regions without classes have ``crops`` cut from the
            original: (R, 3, s, s) uint8, or R tensors (3, hi, wi) where the device resizes them;
            ``whole``, of the same kind, is the crop of the whole picture. Regions of annotations
            have ``region_classes`` (R,) int64 instead.
        """
        picture = read_picture(str(record["file_name"]))
        regions = self.sampler.draw(record, picture.size, rng)
        student = fit_longest(picture, image_size or self.image_size)
        item: dict[str, object] = {
            "image": to_tensor(student),
            "boxes": scale_boxes(regions.boxes, picture.size, student.size),
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "height": picture.height,
            "width": picture.width,
        }
        cut = cut_pieces if self.crop_resizer == "device" else self._cut_resized
        if regions.classes is None:
            item["crops"] = cut(picture, regions.crop_boxes)
        else:
            item["region_classes"] = torch.from_numpy(regions.classes)
        if self.whole_image:
            item["whole"] = cut(picture, np.array([[0.0, 0.0, *picture.size]]))
        return item

    def _cut_resized(self, picture: object, boxes: np.ndarray) -> Tensor:
        return cut_crops(picture, boxes, self.crop_size)  # type: ignore[arg-type]


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
