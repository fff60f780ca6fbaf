"""Annotated boxes as proposals, in the frame of the resized picture."""

from collections.abc import Iterator

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from clipself_d2.detection.annotated_boxes import AnnotatedBoxes

DATASET = "annotated_boxes_pets"


@pytest.fixture(autouse=True)
def pets() -> Iterator[None]:
    def box(*values: float, crowd: int = 0) -> dict[str, object]:
        return {"bbox": list(values), "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": crowd}

    records = [
        {"file_name": "a.jpg", "annotations": [box(10, 20, 30, 40), box(0, 0, 5, 5, crowd=1)]},
        {"file_name": "b.jpg", "annotations": []},
    ]
    DatasetCatalog.register(DATASET, lambda: records)
    yield
    DatasetCatalog.remove(DATASET)


def sample(name: str) -> dict[str, object]:
    """A test sample of a picture of 100 x 50 px (w x h), resized to twice its side."""
    return {"file_name": name, "image": torch.zeros(3, 100, 200), "height": 50, "width": 100}


def test_test_boxes_are_scaled_and_crowds_left_out() -> None:
    found = AnnotatedBoxes([DATASET])([sample("a.jpg"), sample("b.jpg")])
    assert found[0].proposal_boxes.tensor.tolist() == [[20.0, 40.0, 80.0, 120.0]]
    assert found[0].image_size == (100, 200)
    assert not found[0].has("objectness_logits")
    assert found[1].proposal_boxes.tensor.shape == (0, 4)


def test_training_boxes_are_those_of_the_mapped_sample() -> None:
    """No test set is read for them."""
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    instances = Instances((100, 200), gt_boxes=Boxes(boxes))
    (found,) = AnnotatedBoxes(["none_of_that_name"])(
        [{**sample("unknown.jpg"), "instances": instances}]
    )
    assert torch.equal(found.proposal_boxes.tensor, boxes)
    assert found.objectness_logits.tolist() == [0.0]
    found.proposal_boxes.tensor.zero_()
    assert torch.equal(instances.gt_boxes.tensor, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))


def test_picture_of_another_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"c\.jpg.*DATASETS\.TEST"):
        AnnotatedBoxes([DATASET])([sample("c.jpg")])
