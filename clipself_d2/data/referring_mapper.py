"""From a reference's record to an image on its canvas, a sentence and a mask.

Legend: S side of the canvas, H W of the picture, px.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from pycocotools import mask as coco_mask
from torch import Tensor

from clipself_d2.data.items import Item, Record
from clipself_d2.data.pictures import read_picture
from clipself_d2.layers.letterbox import letterbox_image, letterbox_mask


class ReferringMapper:
    """Maps a record to an item of the meta-architecture CRIS.

    Nothing but the letterbox is done to an image: a mirrored one would belie "left" and "right".

    Args:
        is_train: Whether to draw one of a reference's sentences and place the mask on the canvas.
        size: Side S of the canvas.
        border: RGB colour around the picture, 0 to 255.

    Reference: the released code of CRIS, arXiv 2111.15174.
    """

    @configurable
    def __init__(self, *, is_train: bool, size: int, border: Sequence[float]) -> None:
        self.is_train = is_train
        self.size = size
        red, green, blue = map(float, border)
        self.border = (red, green, blue)
        self._last: tuple[str, Tensor] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, object]:
        """Read INPUT.REFER_SIZE and MODEL.PIXEL_MEAN."""
        return {"is_train": is_train, "size": cfg.INPUT.REFER_SIZE, "border": cfg.MODEL.PIXEL_MEAN}

    def __call__(self, record: Record) -> Item:
        """Read the picture and decode the mask.

        Args:
            record: A record of ``load_refer``.

        Returns:
            ``image`` (3, S, S) uint8 RGB, ``sentence``, and ``height``, ``width``, ``file_name``,
            ``image_id`` and ``ref_id`` of the record; in training ``ref_mask`` (S, S) float32 in
            [0, 1] on the canvas, otherwise ``gt_mask`` (H, W) bool on the picture.

        Raises:
            FileNotFoundError: If the picture is missing.
            ValueError: If it has another size than the record.
        """
        height, width = int(record["height"]), int(record["width"])
        item: Item = {
            key: record[key] for key in ("file_name", "image_id", "ref_id", "height", "width")
        }
        item["image"] = self._image(str(record["file_name"]), height, width)
        item["sentence"] = self._sentence(record)
        mask = decode_segmentations(record["segmentations"], height, width)
        if self.is_train:
            item["ref_mask"] = torch.from_numpy(letterbox_mask(mask, self.size))
        else:
            item["gt_mask"] = torch.from_numpy(mask)
        return item

    def _sentence(self, record: Record) -> str:
        if "sentence" in record:
            return str(record["sentence"])
        sentences = record["sentences"]
        return str(sentences[np.random.randint(len(sentences)) if self.is_train else 0])

    def _image(self, path: str, height: int, width: int) -> Tensor:
        # Records of one image follow each other in tests; it is read and encoded once.
        if self._last is not None and self._last[0] == path:
            return self._last[1]
        picture = np.asarray(read_picture(path))
        if picture.shape[:2] != (height, width):
            raise ValueError(
                f"image {path} has {picture.shape[0]} x {picture.shape[1]} px, the annotations say "
                f"{height} x {width}; replace the file"
            )
        placed = letterbox_image(picture, self.size, self.border)
        image = torch.from_numpy(np.ascontiguousarray(placed.transpose(2, 0, 1)))
        if not self.is_train:
            self._last = (path, image)
        return image


def decode_segmentations(segmentations: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Unite COCO polygons and run lengths, compressed or not: (height, width) bool.

    No segmentation gives an empty mask.
    """
    mask = np.zeros((height, width), np.bool_)
    for segmentation in segmentations:
        # Compressed run lengths are decoded as they are; the others are made such first.
        codes = segmentation
        if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
            codes = coco_mask.frPyObjects(segmentation, height, width)
        # One for each polygon of the object.
        if isinstance(codes, list):
            codes = coco_mask.merge(codes)
        mask |= coco_mask.decode(codes).astype(np.bool_)
    return mask
