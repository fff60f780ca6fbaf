"""The loss of semantic segmentation with independent classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_class_loss(
    logits: Tensor, labels: Tensor, *, ignore_label: int, mask_ignored: bool = False
) -> Tensor:
    """Binary cross entropy over all pixels and classes.

    Args:
        logits: (N, T, h, w), enlarged bilinearly to the labels.
        labels: (N, H, W) class numbers, as ``check_labels`` lets them pass.
        ignore_label: Number of pixels without a class.
        mask_ignored: Whether those are left out; False counts them as negatives of every class, as
            published.

    Returns:
        Scalar mean; 0 where every pixel is left out.

    Reference: CAT-Seg, arXiv 2303.11797, section 4.1, and its released code for what is ignored.
    """
    num_classes = logits.shape[1]
    known = labels != ignore_label
    logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    targets = F.one_hot(torch.where(known, labels, 0), num_classes).movedim(-1, 1)
    targets = (targets * known[:, None]).to(torch.float32)
    if not mask_ignored:
        return F.binary_cross_entropy_with_logits(logits.float(), targets)
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return (loss * known[:, None]).sum() / (known.sum() * num_classes).clamp(min=1)


def check_labels(labels: Tensor, num_classes: int, ignore_label: int) -> None:
    """Raise a ValueError for labels that are neither one of T classes nor ignored."""
    known = labels != ignore_label
    outside = labels[known & ((labels < 0) | (labels >= num_classes))]
    if len(outside):
        raise ValueError(
            f"a label map has the class {int(outside[0])}, but there are {num_classes} classes and "
            f"{ignore_label} for ignored pixels; check the data set's labels"
        )


def number_base(labels: Tensor, base_T: Tensor, ignore_label: int) -> Tensor:
    """Number the base classes (T,) by themselves; labels of novel classes are ignored."""
    table = torch.where(base_T, base_T.cumsum(0) - 1, ignore_label)
    known = labels != ignore_label
    return torch.where(known, table[torch.where(known, labels, 0)], labels)
