"""From a data set's record to a student's image, its regions, and the teacher's crops."""

import numpy as np
import torch
from PIL import Image, ImageOps

from clipself_d2.data.items import Item, Record, picture_item, scale_boxes
from clipself_d2.data.pictures import cut_regions, fitted_size, read_picture
from clipself_d2.data.region_sampler import RegionSampler

# A caption is drawn from the first ones of a picture.
MAX_CAPTIONS = 5


class DistillMapper:
    """Maps a record, a random generator and a size to a training item.

    Args:
        sampler: Draws the regions; None where the model proposes them.
        crop_size: Side of the teacher's crops, px; None hands them on as they are cut, for
            ``layers.resize_crops``.
        resize_image: Whether the student's image is resized here; otherwise it comes as it was
            read, for ``layers.resize_longest``.
        whole_image: Whether to add a crop of the whole picture, for the image-level loss.
        shortest_size: Most pixels of the shortest side; the picture is scaled to the first of the
            two limits that it meets. None has no such limit.
        has_crops: Whether the teacher sees crops of the regions.
        flip_probability: Share of the pictures that are mirrored.

    Reference: CLIPSelf, arXiv 2310.01403, for the defaults; RegionCLIP, arXiv 2112.09106, section
    4.1, for captioned pictures: shortest side 800, longest at most 1333, bicubic, mirrored half of
    the time, one of up to five captions.
    """

    def __init__(
        self,
        *,
        sampler: RegionSampler | None,
        crop_size: int | None,
        resize_image: bool = True,
        whole_image: bool = False,
        shortest_size: int | None = None,
        has_crops: bool = True,
        flip_probability: float = 0.0,
    ) -> None:
        self.sampler = sampler
        self.crop_size, self.has_crops = crop_size, has_crops
        self.resize_image, self.shortest_size = resize_image, shortest_size
        self.whole_image = whole_image
        self.flip_probability = flip_probability

    def __call__(self, record: Record, rng: np.random.Generator, image_size: int) -> Item:
        """Read the picture once and cut everything from it.

        Args:
            record: Detectron2's record with ``file_name`` and ``image_id``, and ``captions`` where
                a caption is wanted.
            rng: Source of all randomness.
            image_size: Most pixels of the longest side of the student's image.

        Returns:
            ``image`` (3, h, w) uint8, or with ``longest_side``, px, where it is not resized here;
            ``caption`` where the record has captions; ``file_name``, ``image_id``, and
            ``height`` and ``width`` of the original. Where there is a sampler, ``boxes`` (R, 4)
            float32 XYXY px of the resized image. Regions without classes have ``crops`` cut from
            the original: (R, 3, s, s) uint8, or R tensors (3, hi, wi) where they are not resized
            here; ``whole``, of the same kind, is the crop of the whole picture; ``image_classes``
            are the classes that an annotated picture has. Regions of annotations have
            ``region_classes`` (R,) int64 instead.

        Raises:
            ValueError: If the captions are empty.
        """
        picture = read_picture(record["file_name"])
        # Drawn in this order, which seeds rely on: caption, regions, mirror.
        caption = _draw_caption(record, rng) if "captions" in record else None
        regions = self.sampler.draw(record, picture.size, rng) if self.sampler else None
        is_mirrored = rng.random() < self.flip_probability
        if is_mirrored:
            picture = ImageOps.mirror(picture)
        fitted = fitted_size(picture.size, image_size, self.shortest_size)
        if self.resize_image:
            student = picture.resize(fitted, Image.Resampling.BICUBIC)
            item = picture_item(record, picture, student)
        else:
            item = picture_item(record, picture, picture) | {"longest_side": max(fitted)}
        pixels = None if self.resize_image else item["image"]
        if caption is not None:
            item["caption"] = caption
        if regions is not None:
            boxes, crops = regions.boxes, regions.crop_boxes
            if is_mirrored:
                boxes, crops = (mirror_boxes(each, picture.width) for each in (boxes, crops))
            item["boxes"] = scale_boxes(boxes, picture.size, fitted)
            if regions.classes is not None:
                item["region_classes"] = torch.from_numpy(regions.classes)
            elif self.has_crops:
                item["crops"] = cut_regions(picture, crops, self.crop_size, pixels)
                if "annotations" in record:
                    classes = sorted({row["category_id"] for row in record["annotations"]})
                    item["image_classes"] = torch.tensor(classes, dtype=torch.int64)
        if self.whole_image:
            whole = np.array([[0.0, 0.0, *picture.size]])
            item["whole"] = cut_regions(picture, whole, self.crop_size, pixels)
        return item


def mirror_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Mirror boxes (R, 4) XYXY px with their picture of a width in px."""
    # Left and right change places, or the mirrored boxes would have negative widths.
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _draw_caption(record: Record, rng: np.random.Generator) -> str:
    captions = record["captions"][:MAX_CAPTIONS]
    if not captions or not all(str(caption).strip() for caption in captions):
        raise ValueError(f"image {record['image_id']} has no caption or an empty one: {captions}")
    return str(captions[int(rng.integers(len(captions)))])
