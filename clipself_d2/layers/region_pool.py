"""Embeddings of boxes and masks: pooled from a dense map, or by class tokens that see a region.

Legend: N images, R regions, D joint embedding, h w patch grid.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

# Added to a mask's area so that an empty mask gives zeros.
_EPSILON = 1e-12


class RegionTokenTower(Protocol):
    """What ``masked_attention`` asks of a tower; every ``clip.VisionTower`` has it."""

    @property
    def patch_size(self) -> int:
        """Side of a patch, px."""

    def forward_regions(self, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Embed regions by copies of the class token that see their region alone."""


def roi_embeddings(
    dense_NDhw: Tensor, boxes: Sequence[Tensor | np.ndarray], stride: float, normalize: bool = True
) -> Tensor:
    """Average a dense map over boxes by RoIAlign to one cell.

    Args:
        dense_NDhw: Dense maps of any floating type.
        boxes: For each image (Ki, 4) XYXY in input pixels, a tensor, an array or rows; Ki may be 0.
        stride: Input pixels per cell of the map.
        normalize: Whether results have unit norm.

    Returns:
        (R, D) float32, images in order.

    Raises:
        ValueError: If the maps are no batch, the number of boxes' parts is not N, or one is not
            (Ki, 4).

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2; adaptive sampling, aligned corners.
    """
    if dense_NDhw.ndim != 4:
        raise ValueError(f"dense maps are (N, D, h, w), got {tuple(dense_NDhw.shape)}")
    dense = dense_NDhw.float()
    rois = _box_tensors(boxes, len(dense), f"maps of {len(dense)}", dense.device)
    # A sampling_ratio of -1 takes as many samples as the box covers cells.
    pooled = roi_align(dense, rois, 1, spatial_scale=1.0 / stride, sampling_ratio=-1, aligned=True)
    pooled = pooled[..., 0, 0]
    return F.normalize(pooled, dim=1) if normalize else pooled


def _box_tensors(
    boxes: Sequence[Tensor | np.ndarray], num_images: int, owners: str, device: torch.device
) -> list[Tensor]:
    """One (Ki, 4) float32 tensor for each image, on a device."""
    if len(boxes) != num_images:
        raise ValueError(
            f"got boxes for {len(boxes)} images but {owners}; give one (K, 4) part for each image"
        )
    return [_box_tensor(part, device) for part in boxes]


def _box_tensor(part: Tensor | np.ndarray, device: torch.device | None = None) -> Tensor:
    try:
        rows = torch.as_tensor(part, dtype=torch.float32, device=device)
        rows = rows.reshape(0, 4) if rows.shape == (0,) else rows
        got = str(tuple(rows.shape))
    except (TypeError, ValueError, RuntimeError):
        rows, got = torch.zeros(0), f"a {type(part).__name__}"
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"boxes of an image are (K, 4) numbers, XYXY in pixels, got {got}")
    return rows


def box_masks(boxes_R4: Tensor | np.ndarray, stride: float, grid: tuple[int, int]) -> Tensor:
    """Patches of boxes, for ``masked_attention``.

    Args:
        boxes_R4: XYXY in input pixels; R may be 0.
        stride: Input pixels per cell of the grid.
        grid: Grid (h, w).

    Returns:
        (R, h, w) bool. Both corners are rounded down to cell borders, so that a box narrower than
        the rest of its cell has no patch.

    Reference: the pooling "v1" of the code published with CLIPSelf, arXiv 2310.01403.
    """
    cells = torch.floor(_box_tensor(boxes_R4) / stride)
    left, top, right, bottom = cells[:, :, None].unbind(1)  # (R, 1) each
    rows = torch.arange(grid[0], device=cells.device)
    columns = torch.arange(grid[1], device=cells.device)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_columns = (columns >= left) & (columns < right)
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def masked_attention(
    tower: RegionTokenTower,
    images_N3HW: Tensor,
    boxes: Sequence[Tensor | np.ndarray],
    normalize: bool = True,
) -> Tensor:
    """Embed boxes by copies of the class token that attend to the patches of their box alone.

    Args:
        tower: A tower whose picture embedding is its class token's; others refuse.
        images_N3HW: Normalised pixels of any size.
        boxes: As of ``roi_embeddings``.
        normalize: Whether results have unit norm.

    Returns:
        (R, D) float32, images in order. Boxes are cut as by ``box_masks``; that of a whole image
        whose sides are multiples of the patch gives the image's embedding.

    Raises:
        ValueError: If the boxes do not fit the images, or the tower has no class token to copy.

    Reference: the pooling "v1" of the code published with CLIPSelf, arXiv 2310.01403, there for
    OpenAI's ViT only; its results are not normalised.
    """
    count = len(images_N3HW)
    parts = _box_tensors(boxes, count, f"{count} images", images_N3HW.device)
    stride = tower.patch_size
    height, width = images_N3HW.shape[-2:]
    grid = (math.ceil(height / stride), math.ceil(width / stride))
    masks = [box_masks(each, stride, grid) for each in parts]
    embedding = tower.forward_regions(images_N3HW, masks)
    return F.normalize(embedding, dim=1) if normalize else embedding


def mask_embeddings(
    dense_NDhw: Tensor, masks: Sequence[Tensor | np.ndarray], normalize: bool = True
) -> Tensor:
    """Average a dense map over masks.

    Args:
        dense_NDhw: Dense maps.
        masks: For each image (Ki, h, w) weights in [0, 1], a tensor or an array; Ki may be 0.
        normalize: Whether results have unit norm; an empty mask gives zeros in any case.

    Returns:
        (R, D) float32, images in order.

    Raises:
        ValueError: If the number of mask tensors is not N or a grid differs from the map's.
    """
    if len(masks) != len(dense_NDhw):
        raise ValueError(f"got masks for {len(masks)} images but maps of {len(dense_NDhw)}")
    # An empty part, so that no images make a table too.
    pooled = [dense_NDhw.new_zeros((0, dense_NDhw.shape[1]), dtype=torch.float32)]
    for dense, given in zip(dense_NDhw.float(), masks, strict=True):
        mask = torch.as_tensor(given)
        if mask.shape[1:] != dense.shape[1:]:
            got, grid = tuple(mask.shape[1:]), tuple(dense.shape[1:])
            raise ValueError(f"mask grid {got} is not the map's {grid}")
        weight = mask.to(dense)
        total = torch.einsum("khw,dhw->kd", weight, dense)
        pooled.append(total / (weight.sum((1, 2))[:, None] + _EPSILON))
    result = torch.cat(pooled)
    return F.normalize(result, dim=1) if normalize else result
