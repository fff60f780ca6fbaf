"""Slices cover a picture, and an object in several of them is found once."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from clipself_d2.apps.predict.slices import SlicePlan, merge_slices


@pytest.mark.parametrize(("height", "width"), [(100, 100), (101, 250), (333, 40), (512, 700)])
def test_slices_cover_every_pixel_and_overlap(height: int, width: int) -> None:
    seen = torch.zeros(height, width)
    places = SlicePlan(100, 0.25).cut(height, width)
    for left, top, right, bottom in places:
        assert right - left == min(100, width)
        assert bottom - top == min(100, height)
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1
    columns = sorted({place[0] for place in places})
    assert all(b - a <= 75 for a, b in zip(columns[:-1], columns[1:], strict=True))
    assert len(SlicePlan(100).cut(100, 90)) == 1


def test_options_out_of_range_are_refused() -> None:
    for size, overlap in ((0, 0.2), (10, 1.0), (10, -0.1)):
        with pytest.raises(ValueError, match="the size must be positive"):
            SlicePlan(size, overlap)


def boxes(size, *rows, masks: bool = False) -> Instances:
    """Detections of rows of XYXY, score, class."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    found = Instances(
        size, pred_boxes=Boxes(table[:, :4]), scores=table[:, 4], pred_classes=table[:, 5].long()
    )
    if masks:
        found.pred_masks = torch.zeros(len(table), *size, dtype=torch.bool)
        for number, (left, top, right, bottom) in enumerate(table[:, :4].int().tolist()):
            found.pred_masks[number, top:bottom, left:right] = True
    return found


def test_cut_boxes_go_and_the_best_of_one_object_stays() -> None:
    places = [(0, 0, 60, 50), (40, 0, 100, 50)]
    left = boxes((50, 60), (45, 5, 60, 20, 0.9, 0), (41, 30, 55, 45, 0.6, 1), (0, 0, 9, 9, 0.4, 2))
    right = boxes((50, 60), (5, 5, 30, 20, 0.7, 0), (1.6, 30, 15, 45, 0.8, 1))
    whole = boxes((50, 100), (45, 5, 71, 21, 0.5, 0), (46, 6, 70, 20, 0.3, 3))
    merged = merge_slices(whole, [left, right], places)
    assert merged.image_size == (50, 100)
    # The first box ends at the border between the slices; the whole picture's is worse.
    assert merged.scores.tolist() == pytest.approx([0.8, 0.7, 0.4, 0.3])
    assert merged.pred_boxes.tensor[1].tolist() == [45, 5, 70, 20]
    assert merged.pred_classes.tolist() == [1, 0, 2, 3]


def test_masks_move_with_their_slice() -> None:
    part = boxes((50, 60), (5, 5, 30, 20, 0.7, 0), masks=True)
    merged = merge_slices(boxes((50, 100), masks=True), [part], [(40, 0, 100, 50)])
    assert merged.pred_masks.shape == (1, 50, 100)
    assert merged.pred_masks[0].nonzero().min(0).values.tolist() == [5, 45]
    assert merged.pred_masks.sum() == 25 * 15
