import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.layers.region_pool import (
    box_masks,
    mask_embeddings,
    masked_attention,
    roi_embeddings,
)

TOLERANCE = {"rtol": 0.0, "atol": 1e-6}


@pytest.fixture
def dense():
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn((2, 8, 6, 10), generator=generator), dim=1)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_whole_image_box_is_the_mean_of_the_map(dense):
    whole = [boxes((0, 0, 160, 96))] * 2
    pooled = roi_embeddings(dense, whole, 16, normalize=False)
    torch.testing.assert_close(pooled, dense.mean((2, 3)), **TOLERANCE)


def test_box_on_cell_borders_is_its_cell_or_the_mean_of_its_cells(dense):
    """It is sampled at the cells' centres, where aligned pooling reads them."""
    rows = [boxes((48, 32, 64, 48)), boxes((16, 0, 64, 32))]
    pooled = roi_embeddings(dense, rows, 16, normalize=False)
    torch.testing.assert_close(pooled[0], dense[0, :, 2, 3], **TOLERANCE)
    torch.testing.assert_close(pooled[1], dense[1, :, 0:2, 1:4].mean((1, 2)), **TOLERANCE)


def test_fractional_stride_scales_boxes(dense):
    rows = boxes((14, 14, 70, 42))
    pooled = roi_embeddings(dense, [rows, boxes()], 14, normalize=False)
    doubled = roi_embeddings(dense, [rows / 4, boxes()], 3.5, normalize=False)
    torch.testing.assert_close(pooled, doubled, **TOLERANCE)


def test_rows_follow_the_images_and_have_unit_norm(dense):
    lists = [boxes((0, 0, 16, 16)), boxes((0, 0, 160, 96), (16, 16, 32, 32))]
    pooled = roi_embeddings(dense, lists, 16)
    assert pooled.shape == (3, 8)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(3), **TOLERANCE)
    torch.testing.assert_close(pooled[0], dense[0, :, 0, 0], **TOLERANCE)
    torch.testing.assert_close(pooled[2], dense[1, :, 1, 1], **TOLERANCE)


@pytest.mark.parametrize("normalize", [False, True])
def test_no_regions_give_no_rows(dense, normalize):
    assert roi_embeddings(dense, [boxes(), boxes()], 16, normalize).shape == (0, 8)
    none = [torch.zeros(0, 6, 10)] * 2
    assert mask_embeddings(dense, none, normalize).shape == (0, 8)


def test_box_smaller_than_a_cell_is_finite(dense):
    pooled = roi_embeddings(dense, [boxes((40, 40, 41, 41)), boxes((5, 5, 5, 5))], 16)
    assert torch.isfinite(pooled).all()


def test_gradient_reaches_exactly_the_pooled_cells(dense):
    dense.requires_grad_()
    roi_embeddings(dense, [boxes((48, 32, 64, 48)), boxes()], 16, normalize=False).sum().backward()
    assert dense.grad.abs().sum(1).nonzero().tolist() == [[0, 2, 3]]


def test_half_precision_maps_are_pooled_in_float32(dense):
    pooled = roi_embeddings(dense.bfloat16(), [boxes((0, 0, 160, 96))] * 2, 16, normalize=False)
    assert pooled.dtype == torch.float32
    expected = dense.bfloat16().float().mean((2, 3))
    torch.testing.assert_close(pooled, expected, **TOLERANCE)
    masked = mask_embeddings(dense.bfloat16(), [torch.ones(1, 6, 10)] * 2, normalize=False)
    torch.testing.assert_close(masked, expected, **TOLERANCE)


def test_box_masks_round_both_corners_down():
    rows = boxes((0, 0, 160, 96), (16, 32, 72, 95), (17, 33, 32, 48), (80, 80, 85, 83))
    masks = box_masks(rows, 16, (6, 10))
    assert masks.dtype == torch.bool
    assert masks[0].all()
    expected = torch.zeros(6, 10, dtype=torch.bool)
    expected[2:5, 1:4] = True
    assert torch.equal(masks[1], expected)
    assert masks[2].nonzero().tolist() == [[2, 1]]
    assert not masks[3].any()
    assert box_masks(boxes(), 16, (6, 10)).shape == (0, 6, 10)


def test_masks_of_boxes_on_cell_borders_pool_as_the_boxes(dense):
    rows = boxes((16, 0, 64, 32), (48, 32, 64, 48))
    masks = [box_masks(rows, 16, (6, 10)), torch.zeros(0, 6, 10)]
    expected = roi_embeddings(dense, [rows, boxes()], 16)
    torch.testing.assert_close(mask_embeddings(dense, masks), expected, **TOLERANCE)


def test_mask_weights_average_their_cells(dense):
    mask = torch.zeros(1, 6, 10)
    mask[0, 1, 2], mask[0, 4, 5] = 0.25, 0.75
    pooled = mask_embeddings(dense, [torch.zeros(0, 6, 10), mask], normalize=False)
    expected = 0.25 * dense[1, :, 1, 2] + 0.75 * dense[1, :, 4, 5]
    torch.testing.assert_close(pooled[0], expected, **TOLERANCE)


@pytest.mark.parametrize("normalize", [False, True])
def test_empty_mask_gives_zeros(dense, normalize):
    pooled = mask_embeddings(dense, [torch.zeros(1, 6, 10)] * 2, normalize)
    assert torch.equal(pooled, torch.zeros(2, 8))


def test_wrong_counts_and_grids_are_named(dense):
    with pytest.raises(ValueError, match="boxes for 1 images but maps of 2"):
        roi_embeddings(dense, [boxes()], 16)
    with pytest.raises(ValueError, match="masks for 3 images but maps of 2"):
        mask_embeddings(dense, [torch.zeros(0, 6, 10)] * 3)
    with pytest.raises(ValueError, match=r"mask grid \(10, 6\) is not the map's \(6, 10\)"):
        mask_embeddings(dense, [torch.zeros(1, 10, 6)] * 2)


class CountingTower:
    """Embeds a region as the column and row sums of its patches."""

    patch_size = 16

    def forward_regions(self, images, masks):
        rows = [torch.cat([mask.float().sum(1), mask.float().sum(2)], dim=1) for mask in masks]
        return torch.cat(rows)


def test_masked_attention_shows_a_box_its_patches_alone():
    """A grid of 3 x 2 cells whose last ones are padding; the second image has no box."""
    images = torch.zeros(2, 3, 40, 30)
    pair = [boxes((0, 0, 30, 40), (0, 16, 16, 32)), boxes()]
    got = masked_attention(CountingTower(), images, pair, normalize=False)
    assert got.tolist() == [[2, 0, 1, 1, 0], [1, 0, 0, 1, 0]]
    unit = masked_attention(CountingTower(), images, pair)
    torch.testing.assert_close(unit, F.normalize(got, dim=1))
    with pytest.raises(ValueError, match="boxes for 1 images but 2 images"):
        masked_attention(CountingTower(), images, pair[:1])


def test_boxes_may_be_arrays_and_rows_of_any_number_type(dense):
    pair = [boxes((0, 0, 40, 40), (16, 0, 90, 60)), boxes()]
    expected = roi_embeddings(dense, pair, 16)
    doubles = [part.double().numpy() for part in pair]
    rows = [[[0, 0, 40, 40], (16, 0, 90, 60)], []]
    whole = (part.long() for part in pair)
    for given in (doubles, rows, tuple(whole)):
        assert torch.equal(roi_embeddings(dense, given, 16), expected)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (boxes((0, 0, 1, 1), (0, 0, 2, 2)), r"\(K, 4\) numbers, XYXY in pixels, got \(4,\)"),
        ([torch.zeros(1, 5)] * 2, r"got \(1, 5\)"),
        ([["a"]] * 2, "got a list"),
        ([None] * 2, "got a NoneType"),
        (boxes((0, 0, 1, 1)), r"one \(K, 4\) part for each image"),
    ],
)
def test_other_boxes_are_told_how_to_be(dense, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        roi_embeddings(dense, given, 16)


def test_a_map_without_a_batch_is_refused(dense):
    with pytest.raises(ValueError, match=r"dense maps are \(N, D, h, w\), got \(8, 6, 10\)"):
        roi_embeddings(dense[0], [boxes()], 16)


def test_masks_may_be_arrays(dense):
    masks = [torch.rand(2, 6, 10) for _ in range(2)]
    arrays = [mask.numpy() for mask in masks]
    assert torch.equal(mask_embeddings(dense, arrays), mask_embeddings(dense, masks))
    found = box_masks(np.array([[0, 0, 32, 16]]), 16, (2, 3))
    assert found.tolist() == [[[True, True, False], [False] * 3]]
