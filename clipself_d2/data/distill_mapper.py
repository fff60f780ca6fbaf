"""From a data set's record to a student's image, its regions, and the teacher's crops."""

import numpy as np
import torch

from clipself_d2.data.items import Item, Record, picture_item, scale_boxes
from clipself_d2.data.pictures import cut_regions, fit_longest, fitted_size, read_picture
from clipself_d2.data.region_sampler import RegionSampler


class DistillMapper:
    """Maps a record, a random generator and a size to a training item.

    Args:
        sampler: Draws the regions.
        crop_size: Side of the teacher's crops, px; None hands them on as they are cut, for
            ``layers.resize_crops``.
        resize_image: Whether the student's image is resized here; otherwise it comes as it was
            read, for ``layers.resize_longest``.
        whole_image: Whether to add a crop of the whole picture, for the image-level loss.
    """

    def __init__(
        self,
        *,
        sampler: RegionSampler,
        crop_size: int | None,
        resize_image: bool = True,
        whole_image: bool = False,
    ) -> None:
        self.sampler = sampler
        self.crop_size = crop_size
        self.resize_image = resize_image
        self.whole_image = whole_image

    def __call__(self, record: Record, rng: np.random.Generator, image_size: int) -> Item:
        """Read the picture once and cut everything from it.

        Args:
            record: Detectron2's record with ``file_name`` and ``image_id``.
            rng: Source of all randomness.
            image_size: Longest side of the student's image, px.

        Returns:
            ``image`` (3, h, w) uint8 with the longest side ``image_size``, or ``longest_side``,
            which says so, where it is not resized here; ``boxes`` (R, 4) float32 XYXY px of the
            resized image; ``file_name``, ``image_id``, and ``height`` and
            ``width`` of the original. Regions without classes have ``crops`` cut from the
            original: (R, 3, s, s) uint8, or R tensors (3, hi, wi) where they are not resized here;
            ``whole``, of the same kind, is the crop of the whole picture; ``image_classes`` are the
            classes that an annotated picture has. Regions of annotations have ``region_classes``
            (R,) int64 instead.
        """
        picture = read_picture(record["file_name"])
        regions = self.sampler.draw(record, picture.size, rng)
        student = fit_longest(picture, image_size) if self.resize_image else picture
        item = picture_item(record, picture, student)
        if not self.resize_image:
            item["longest_side"] = image_size
        fitted = fitted_size(picture.size, image_size)
        item["boxes"] = scale_boxes(regions.boxes, picture.size, fitted)
        if regions.classes is None:
            item["crops"] = cut_regions(picture, regions.crop_boxes, self.crop_size)
            if "annotations" in record:
                classes = sorted({row["category_id"] for row in record["annotations"]})
                item["image_classes"] = torch.tensor(classes, dtype=torch.int64)
        else:
            item["region_classes"] = torch.from_numpy(regions.classes)
        if self.whole_image:
            whole = np.array([[0.0, 0.0, *picture.size]])
            item["whole"] = cut_regions(picture, whole, self.crop_size)
        return item
