"""Training items of panoptic segmentation: a picture and the mask of every segment.

Legend: H W pixels, T segments.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from detectron2.structures import BitMasks, Instances

from clipself_d2.data.items import Item, Record, picture_item
from clipself_d2.data.pictures import read_picture
from clipself_d2.parts.label_maps import check_segments, read_segment_colours, segment_ids


class PanopticMapper:
    """Maps a panoptic record to ``instances`` of ``gt_classes`` and ``gt_masks``.

    Things and stuff alike are instances; crowds, and segments of which the crop shows no pixel, are
    left out. What belongs to no segment is nobody's.

    Args:
        augmentations: Detectron2's, of pictures and label maps.
    """

    def __init__(self, *, augmentations: Sequence[Augmentation]) -> None:
        self.augmentations = AugmentationList(list(augmentations))

    def __call__(self, record: Record) -> Item:
        """Read a picture and its segments.

        Args:
            record: Detectron2's panoptic record with contiguous ``category_id``.

        Returns:
            ``image`` (3, H, W) uint8 RGB, ``instances``, and ``file_name``, ``image_id``,
            ``height``, ``width`` of the picture.

        Raises:
            FileNotFoundError: If the picture or its PNG is missing.
            ValueError: If one cannot be decoded, or their sizes differ.
        """
        picture = read_picture(record["file_name"])
        # What training leaves out, such as novel classes, is drawn but not listed.
        colours = read_colours(record, picture.size, all_listed=False)
        # The three bytes of an id are moved apart and joined afterwards: all resizing of labels
        # takes the nearest pixel, and 8 bits are what it is sure to take.
        inputs = AugInput(np.asarray(picture), sem_seg=colours)
        self.augmentations(inputs)
        ids = segment_ids(inputs.sem_seg)
        classes, masks = [], []
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            if not segment.get("iscrowd") and mask.any():
                classes.append(segment["category_id"])
                masks.append(mask)
        stacked = np.stack(masks) if masks else np.zeros((0, *ids.shape), bool)
        instances = Instances(
            ids.shape,
            gt_classes=torch.tensor(classes, dtype=torch.int64),
            gt_masks=BitMasks(torch.from_numpy(stacked)),
        )
        return {**picture_item(record, picture, inputs.image), "instances": instances}


def read_colours(record: Record, size: tuple[int, int], *, all_listed: bool = True) -> np.ndarray:
    """Read the segments' PNG of a picture of (width, height) px, and check it: (H, W, 3) uint8.

    As ``check_segments``; a ValueError also says that the sizes differ.
    """
    path = record["pan_seg_file_name"]
    colours = read_segment_colours(path)
    height, width = colours.shape[:2]
    if (width, height) != size:
        raise ValueError(
            f"panoptic map {path} is {width} x {height} px, but its picture "
            f"{record['file_name']} is {size[0]} x {size[1]}"
        )
    check_segments(segment_ids(colours), record["segments_info"], path, all_listed=all_listed)
    return colours
