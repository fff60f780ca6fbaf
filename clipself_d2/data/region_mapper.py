"""Regions of COCO panoptic ground truth, for scoring dense features.

Classes are counted things first, then stuff, in the order of the metadata's ``thing_classes`` and
``stuff_classes``.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipself_d2.data.items import Item, Record, picture_item, scale_boxes
from clipself_d2.data.panoptic_mapper import read_colours
from clipself_d2.data.pictures import cut_crops, fit_longest, read_picture
from clipself_d2.data.regions import corners_of, enlarge_boxes
from clipself_d2.parts.label_maps import segment_ids

MAX_SEGMENTS = 100
BOX_SIZE_RANGE = (8.0, 1024.0)
CROP_ENLARGE = 1.5


class RegionMapper:
    """Maps a panoptic record to an image and its ground-truth regions.

    Args:
        image_size: Longest side of the student's image, px.
        crop_size: Side of the teacher's crops, px; None cuts none.
        patch_size: Side of a patch, px.
        pad_to_square: Whether masks are padded to the grid of a square image.

    Reference: the zero-shot evaluation of CLIPSelf, arXiv 2310.01403, section 4.1: at most 100
    segments an image, areas from 8^2 to 1024^2 px, crops of things enlarged by 1.5.
    """

    def __init__(
        self, *, image_size: int, crop_size: int | None, patch_size: int, pad_to_square: bool
    ) -> None:
        self.image_size, self.crop_size = image_size, crop_size
        self.patch_size = patch_size
        self.pad_to_square = pad_to_square

    def __call__(self, record: Record) -> Item:
        """Read a picture with its regions.

        Args:
            record: Detectron2's panoptic record; ``category_id`` of a segment is contiguous,
                things first.

        Returns:
            ``image`` (3, h, w) uint8; ``boxes`` (R, 4) XYXY px of it; ``crops`` (R, 3, s, s)
            uint8, where wanted; ``masks`` (R, h, w) bool on the patch grid; ``region_classes``
            (R,) int64; ``region_is_thing`` (R,) bool; ``file_name``, ``image_id``, ``height``,
            ``width``.

        Raises:
            FileNotFoundError: If the picture or its panoptic PNG is missing.
            ValueError: If one cannot be decoded, their sizes differ, or the PNG has other segments
                than the record.
        """
        picture = read_picture(record["file_name"])
        ids = segment_ids(read_colours(record, picture.size))
        boxes, masks, classes, things = [], [], [], []
        for segment in record["segments_info"][:MAX_SEGMENTS]:
            mask = ids == segment["id"]
            box = corners_of(segment["bbox"]) if segment["isthing"] else _tight_box(mask)
            area = max(0.0, (box[2] - box[0]) * (box[3] - box[1]))
            if not BOX_SIZE_RANGE[0] ** 2 <= area <= BOX_SIZE_RANGE[1] ** 2:
                continue
            boxes.append(box)
            masks.append(self._shrink(mask))
            classes.append(segment["category_id"])
            things.append(bool(segment["isthing"]))
        # (R, 4), also where R is 0.
        box_array = np.array(boxes, np.float64).reshape(-1, 4)
        is_thing = np.array(things, bool)
        larger = enlarge_boxes(box_array, CROP_ENLARGE, *picture.size)
        # Things show their surroundings to the teacher, stuff is all surroundings.
        crop_boxes = np.where(is_thing[:, None], larger, box_array)
        student = fit_longest(picture, self.image_size)
        no_masks = torch.zeros(0, *self._grid(student.size), dtype=torch.bool)
        item = picture_item(record, picture, student) | {
            "boxes": scale_boxes(box_array, picture.size, student.size),
            "masks": torch.stack(masks) if masks else no_masks,
            "region_classes": torch.tensor(classes, dtype=torch.int64),
            "region_is_thing": torch.from_numpy(is_thing),
        }
        if self.crop_size is not None:
            item["crops"] = cut_crops(picture, crop_boxes, self.crop_size)
        return item

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Patch grid (h, w) of a student image of (width, height)."""
        if self.pad_to_square:
            # Rounded up: the last patch may show padding.
            side = -(-self.image_size // self.patch_size)
            return side, side
        return -(-size[1] // self.patch_size), -(-size[0] // self.patch_size)

    def _shrink(self, mask: np.ndarray) -> Tensor:
        """Bicubic to the patch grid, then every positive response counts, as published."""
        scale = self.image_size / max(mask.shape)
        height, width = (max(1, round(side * scale)) for side in mask.shape)
        grid = np.zeros(self._grid((width, height)), bool)
        # Published for sizes that are multiples of the patch; of others the nearest whole grid.
        cell_scale = self.image_size / self.patch_size / max(mask.shape)
        rows, columns = (max(1, round(side * cell_scale)) for side in mask.shape)
        picture = Image.fromarray(mask.astype(np.float32))
        cells = np.asarray(picture.resize((columns, rows), Image.Resampling.BICUBIC)) > 0
        rows, columns = (min(a, b) for a, b in zip(cells.shape, grid.shape, strict=True))
        grid[:rows, :columns] = cells[:rows, :columns]
        return torch.from_numpy(grid)


def _tight_box(mask: np.ndarray) -> list[float]:
    """The published box of stuff: its last row and column are left out."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return [0.0, 0.0, 0.0, 0.0]
    return [float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])]
