"""Training items of panoptic segmentation: a picture and the mask of every segment.

Legend: H W pixels, T segments.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from detectron2.structures import BitMasks, Instances

from clipself_d2.data.items import Item, Record
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
        picture = np.asarray(read_picture(record["file_name"]))
        colours = read_segment_colours(record["pan_seg_file_name"])
        if picture.shape != colours.shape:
            raise ValueError(
                f"{record['pan_seg_file_name']} is {colours.shape[1]} x {colours.shape[0]} px, but "
                f"its picture {record['file_name']} is {picture.shape[1]} x {picture.shape[0]}"
            )
        # What training leaves out, such as novel classes, is drawn but not listed.
        check_segments(
            segment_ids(colours),
            record["segments_info"],
            record["pan_seg_file_name"],
            all_listed=False,
        )
        # The three bytes of an id are moved apart and joined afterwards: all resizing of labels
        # takes the nearest pixel, and 8 bits are what it is sure to take.
        inputs = AugInput(picture, sem_seg=colours)
        self.augmentations(inputs)
        ids = segment_ids(inputs.sem_seg)
        classes, masks = [], []
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            if not segment.get("iscrowd") and mask.any():
                classes.append(segment["category_id"])
                masks.append(mask)
        size = ids.shape
        instances = Instances(size)
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        stacked = np.stack(masks) if masks else np.zeros((0, *size), bool)
        instances.gt_masks = BitMasks(torch.from_numpy(stacked))
        kept = {key: record[key] for key in ("file_name", "image_id")}
        kept |= {"height": picture.shape[0], "width": picture.shape[1]}
        pixels = np.ascontiguousarray(inputs.image.transpose(2, 0, 1))
        return {**kept, "image": torch.from_numpy(pixels), "instances": instances}
