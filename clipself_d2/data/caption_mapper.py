"""From a captioned picture to a student's image, its regions, and the teacher's crops."""

import numpy as np
from PIL import Image, ImageOps

from clipself_d2.data.items import Item, Record, picture_item, scale_boxes
from clipself_d2.data.pictures import cut_regions, fitted_size, read_picture
from clipself_d2.data.region_sampler import RegionSampler

# A caption is drawn from the first ones of a picture.
MAX_CAPTIONS = 5


class CaptionMapper:
    """Maps a record, a random generator and a size to a training item.

    Args:
        sampler: Draws the regions; None where the model proposes them.
        shortest_size: Most pixels of the shortest side; the picture is scaled to the first of the
            two limits that it meets.
        crop_size: As of ``DistillMapper``.
        has_crops: Whether the teacher sees crops of the regions.
        flip_probability: Share of the pictures that are mirrored.
        resize_image: As of ``DistillMapper``.

    Reference: RegionCLIP, arXiv 2112.09106, section 4.1: shortest side 800, longest at most 1333,
    bicubic, mirrored half of the time, one of up to five captions.
    """

    def __init__(
        self,
        *,
        sampler: RegionSampler | None,
        shortest_size: int,
        crop_size: int | None,
        has_crops: bool = True,
        flip_probability: float = 0.5,
        resize_image: bool = True,
    ) -> None:
        self.sampler = sampler
        self.shortest_size = shortest_size
        self.crop_size, self.has_crops = crop_size, has_crops
        self.flip_probability, self.resize_image = flip_probability, resize_image

    def __call__(self, record: Record, rng: np.random.Generator, image_size: int) -> Item:
        """Read the picture once and cut everything from it.

        Args:
            record: Detectron2's record with ``file_name`` and ``image_id``, and ``captions`` where
                a caption is wanted.
            rng: Source of all randomness.
            image_size: Most pixels of the longest side.

        Returns:
            ``image`` (3, h, w) uint8, with ``longest_side`` where it is not resized here;
            ``caption`` where the record has captions; ``boxes`` (R, 4)
            float32 XYXY px of the resized image where there is a sampler, and ``crops`` as of
            ``DistillMapper`` where the teacher sees crops; ``file_name``, ``image_id``, and
            ``height`` and ``width`` of the original.

        Raises:
            ValueError: If the captions are empty.
        """
        picture = read_picture(record["file_name"])
        # Drawn in this order: caption, regions, mirror.
        caption = _draw_caption(record, rng) if "captions" in record else None
        boxes = crops = np.zeros((0, 4))
        if self.sampler is not None:
            regions = self.sampler.draw(record, picture.size, rng)
            boxes, crops = regions.boxes, regions.crop_boxes
        if rng.random() < self.flip_probability:
            boxes, crops = mirror_boxes(boxes, picture.width), mirror_boxes(crops, picture.width)
            picture = ImageOps.mirror(picture)
        if self.resize_image:
            student = fit_sides(picture, image_size, self.shortest_size)
            item, size = picture_item(record, picture, student), student.size
        else:
            item = picture_item(record, picture, picture)
            item["longest_side"] = max(_fitted_sides(picture.size, image_size, self.shortest_size))
            size = fitted_size(picture.size, item["longest_side"])
        if caption is not None:
            item["caption"] = caption
        if self.sampler is not None:
            item["boxes"] = scale_boxes(boxes, picture.size, size)
            if self.has_crops:
                item["crops"] = cut_regions(picture, crops, self.crop_size)
        return item


def mirror_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Mirror boxes (R, 4) XYXY px with their picture of a width in px."""
    mirrored = boxes.copy()
    mirrored[:, 0], mirrored[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return mirrored


def fit_sides(image: Image.Image, longest: int, shortest: int) -> Image.Image:
    """Scale a picture, bicubic, until its longest or its shortest side (px) meets its limit."""
    size = _fitted_sides(image.size, longest, shortest)
    return image.resize(size, Image.Resampling.BICUBIC)


def _fitted_sides(sides: tuple[int, int], longest: int, shortest: int) -> tuple[int, int]:
    scale = min(longest / max(sides), shortest / min(sides))
    first, second = (max(1, round(side * scale)) for side in sides)
    return first, second


def _draw_caption(record: Record, rng: np.random.Generator) -> str:
    captions = record["captions"][:MAX_CAPTIONS]
    if not captions or not all(str(caption).strip() for caption in captions):
        raise ValueError(f"image {record['image_id']} has no caption or an empty one: {captions}")
    return str(captions[int(rng.integers(len(captions)))])
