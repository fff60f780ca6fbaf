"""Merging masks into maps: the reference's numbers, then hand-made pictures."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import BitMasks

from clipself_d2.segmentation.merge import (
    boxes_around,
    instances_of,
    panoptic_map,
    semantic_map,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "panoptic"


def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "panoptic_inference.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_panoptic_map_is_the_references() -> None:
    case = golden()
    thing_mask = torch.zeros(4, dtype=torch.bool)
    thing_mask[case["thing_ids"]] = True
    ids, segments = panoptic_map(case["mask_cls"], case["mask_pred"], thing_mask)
    assert torch.equal(ids, case["panoptic"])
    wanted = json.loads((GOLDEN / "panoptic_inference_segments.json").read_text())
    kept = [{key: row[key] for key in ("id", "isthing", "category_id")} for row in segments]
    assert kept == wanted


def test_semantic_map_is_the_references() -> None:
    case = golden()
    torch.testing.assert_close(
        semantic_map(case["mask_cls"], case["mask_pred"]), case["semseg"], rtol=0, atol=1e-5
    )


def blocks(*columns: tuple[int, int]) -> torch.Tensor:
    """Masks of 4 x 8 px that are sure of a range of columns."""
    masks = torch.full((len(columns), 4, 8), -10.0)
    for mask, (start, end) in zip(masks, columns, strict=True):
        mask[:, start:end] = 10.0
    return masks


def scores(*labels: int, num: int = 3) -> torch.Tensor:
    rows = torch.full((len(labels), num + 1), 0.02)
    rows[range(len(labels)), list(labels)] = 0.9
    return rows.log()


def test_stuff_of_one_class_is_one_segment_and_things_are_not() -> None:
    masks = blocks((0, 2), (2, 4), (4, 6), (6, 8))
    ids, segments = panoptic_map(scores(0, 0, 2, 2), masks, torch.tensor([True, True, False]))
    assert ids[0].tolist() == [1, 1, 2, 2, 3, 3, 3, 3]
    assert [row["category_id"] for row in segments] == [0, 0, 2]


def test_void_and_hidden_masks_are_dropped() -> None:
    masks = blocks((0, 4), (0, 3), (4, 8))
    log_probs = scores(0, 1, 3)
    log_probs[1, 1] = 0.5  # above the first, so that it takes three of its four columns
    ids, segments = panoptic_map(log_probs, masks, torch.ones(3, dtype=torch.bool))
    assert [row["category_id"] for row in segments] == [1]
    assert ids[0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_no_mask_is_an_empty_map() -> None:
    ids, segments = panoptic_map(scores(3), blocks((0, 4)), torch.ones(3, dtype=torch.bool))
    assert not ids.any()
    assert segments == []


def test_instances_are_things_with_boxes_and_the_masks_quality() -> None:
    masks = blocks((0, 2), (2, 4), (0, 0))
    found = instances_of(scores(0, 2, 1), masks, torch.tensor([True, True, False]), most=100)
    best = int(found.scores.argmax())
    assert found.pred_classes[best] == 0
    assert found.pred_boxes.tensor[best].tolist() == [0, 0, 2, 4]
    expected = torch.sigmoid(torch.tensor(10.0)) * scores(0)[0].softmax(-1)[0]
    torch.testing.assert_close(found.scores[best], expected)
    assert 2 not in found.pred_classes
    assert found.pred_masks.flatten(1).any(1).all()


def test_boxes_around_masks_are_detectron2s() -> None:
    masks = torch.rand(40, 9, 7, generator=torch.Generator().manual_seed(0)) > 0.93
    masks = masks[masks.flatten(1).any(1)]
    expected = BitMasks(masks).get_bounding_boxes().tensor
    assert torch.equal(boxes_around(masks).tensor, expected)
    assert boxes_around(masks[:0]).tensor.shape == (0, 4)
