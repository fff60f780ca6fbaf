"""From a captioned picture to a student's image, its regions, and the teacher's crops."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from clipself_d2.data.distill_mapper import scale_boxes
from clipself_d2.data.pictures import cut_crops, cut_pieces, read_picture, to_tensor
from clipself_d2.data.region_sampler import RegionSampler

# A caption is drawn from the first ones of a picture.
MAX_CAPTIONS = 5


class CaptionMapper:
    """Maps a record and a random generator to a training item.

    Args:
        sampler: Draws the regions; None where the model proposes them.
        image_size: Most pixels of the longest side.
        shortest_size: Most pixels of the shortest side; the picture is scaled to the first of the
            two limits that it meets.
        crop_size: Side of the teacher's crops, px, or None where the teacher sees no crops.
        crop_resizer: As of ``DistillMapper``.
        flip_probability: Share of the pictures that are mirrored.

    Reference: RegionCLIP, arXiv 2112.09106, section 4.1: shortest side 800, longest at most 1333,
    bicubic, mirrored half of the time, one of up to five captions.
    """

    def __init__(
        self,
        *,
        sampler: RegionSampler | None,
        image_size: int,
        shortest_size: int,
        crop_size: int | None = None,
        crop_resizer: str = "pil",
        flip_probability: float = 0.5,
    ) -> None:
        self.sampler = sampler
        self.image_size, self.shortest_size = image_size, shortest_size
        self.crop_size, self.crop_resizer = crop_size, crop_resizer
        self.flip_probability = flip_probability

    def __call__(
        self,
        record: Mapping[str, object],
        rng: np.random.Generator,
        image_size: int | None = None,
    ) -> dict[str, object]:
        """Read the picture once and cut everything from it.

        Args:
            record: Detectron2's record with ``file_name`` and ``image_id``, and ``captions`` where
                a caption is wanted.
            rng: Source of all randomness.
            image_size: Longest side, px, instead of the mapper's own.

        Returns:
            ``image`` (3, h, w) uint8; ``caption`` where the record has captions; ``boxes`` (R, 4)
            float32 XYXY px of the image where there is a sampler, and ``crops`` as of
            ``DistillMapper`` where the teacher sees crops; ``file_name``, ``image_id``, and
            ``height`` and ``width`` of the original.

        Raises:
            ValueError: If the captions are empty.
        """
        picture = read_picture(str(record["file_name"]))
        item: dict[str, object] = {
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "height": picture.height,
            "width": picture.width,
        }
        if "captions" in record:
            item["caption"] = _draw_caption(record, rng)
        boxes = crops = np.zeros((0, 4))
        if self.sampler is not None:
            regions = self.sampler.draw(record, picture.size, rng)
            boxes, crops = regions.boxes, regions.crop_boxes
        if rng.random() < self.flip_probability:
            boxes, crops = mirror_boxes(boxes, picture.width), mirror_boxes(crops, picture.width)
            picture = ImageOps.mirror(picture)
        student = fit_sides(picture, image_size or self.image_size, self.shortest_size)
        item["image"] = to_tensor(student)
        if self.sampler is not None:
            item["boxes"] = scale_boxes(boxes, picture.size, student.size)
            if self.crop_size is not None:
                cut_device = self.crop_resizer == "device"
                item["crops"] = (
                    cut_pieces(picture, crops)
                    if cut_device
                    else cut_crops(picture, crops, self.crop_size)
                )
        return item


def mirror_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Mirror boxes with their picture.

    Args:
        boxes: (R, 4) XYXY px.
        width: Width of the picture, px.

    Returns:
        (R, 4).
    """
    mirrored = boxes.copy()
    mirrored[:, 0], mirrored[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return mirrored


def fit_sides(image: Image.Image, longest: int, shortest: int) -> Image.Image:
    """Scale a picture until one of its sides meets its limit.

    Args:
        image: Picture.
        longest: Most pixels of the longest side.
        shortest: Most pixels of the shortest side.

    Returns:
        The scaled picture, bicubic.
    """
    scale = min(longest / max(image.size), shortest / min(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _draw_caption(record: Mapping[str, object], rng: np.random.Generator) -> str:
    captions = list(record["captions"])[:MAX_CAPTIONS]  # type: ignore[call-overload]
    if not captions or not all(str(caption).strip() for caption in captions):
        raise ValueError(f"image {record['image_id']} has no caption or an empty one: {captions}")
    return str(captions[int(rng.integers(len(captions)))])
