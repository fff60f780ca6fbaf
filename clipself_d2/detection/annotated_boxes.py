"""The boxes of a data set's annotations as proposals, in training and in tests."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from torch import Tensor


class AnnotatedBoxes:
    """Proposals that are the ground truth; crowds are left out.

    In training they are those of the mapped sample. In tests Detectron2's mapper drops the
    annotations, and they are looked up by the picture's file name.

    Args:
        names: Registered test sets, which are read when the first of their pictures comes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    @cached_property
    def _boxes(self) -> dict[str, Tensor]:
        return read_boxes(self._names)

    def __call__(self, inputs: Sequence[Mapping[str, object]]) -> list[Instances]:
        """Give every sample ``proposal_boxes``, XYXY px of the resized picture.

        Without objectness in tests; a ValueError says that a picture is of none of the data
        sets.
        """
        return [self._propose(sample) for sample in inputs]

    def _propose(self, sample: Mapping[str, object]) -> Instances:
        image = sample["image"]
        assert isinstance(image, Tensor), f"image is {type(image)}"
        size = (int(image.shape[-2]), int(image.shape[-1]))
        instances = sample.get("instances")
        if isinstance(instances, Instances):
            boxes = instances.gt_boxes.tensor.clone()
            # Detectron2 adds the ground truth to proposals, with this field.
            objectness = boxes.new_zeros(len(boxes))
            return Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=objectness)
        boxes = self._boxes.get(str(sample.get("file_name")))
        if boxes is None:
            raise ValueError(
                f"MODEL.PROPOSAL_GENERATOR.NAME AnnotatedBoxes finds no annotations of "
                f"{sample.get('file_name')}; DATASETS.TEST must name its data set"
            )
        # Detectron2 gives the size before its resizing.
        height, width = int(str(sample["height"])), int(str(sample["width"]))
        scale = torch.tensor([size[1] / width, size[0] / height]).repeat(2)
        return Instances(size, proposal_boxes=Boxes(boxes * scale))


def read_boxes(names: Sequence[str]) -> dict[str, Tensor]:
    """Read the boxes of data sets by file name, without crowds: (K, 4) XYXY px."""
    boxes = {}
    for name in names:
        for record in DatasetCatalog.get(name):
            kept = [
                BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS)
                for item in record.get("annotations", [])
                if not item.get("iscrowd", 0)
            ]
            table = torch.tensor(kept, dtype=torch.float32).reshape(-1, 4)
            boxes[str(record["file_name"])] = table
    return boxes
