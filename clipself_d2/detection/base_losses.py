"""Training on base classes alone: novel classes leave the softmax, and no box may be of one.

Legend: R regions, K classes.
"""

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor

from clipself_d2.layers.focal_scaling import focal_scaled_loss


def base_only_loss(
    logits_RK1: Tensor,
    labels_R: Tensor,
    base_mask_K: Tensor,
    background_weight: float,
    *,
    gamma: float = 0.0,
    normalize: bool = False,
) -> Tensor:
    """Cross entropy over base classes and background.

    Args:
        logits_RK1: (R, K + 1), background last; R may be 0.
        labels_R: (R,) class numbers, K for background.
        base_mask_K: (K,) True for classes with training boxes; the others leave the softmax.
        background_weight: Weight of background regions.
        gamma: Exponent of the focal factor (1 - p); 0 leaves it out.
        normalize: Whether the sum is divided by the sum of the regions' weights instead of by R.

    Returns:
        Weighted sum over regions divided by R or by the weights, a scalar; 0 without regions.

    Raises:
        ValueError: If a region is labelled with a novel class, or with none of the vocabulary.

    Reference: F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1; the weights are not renormalised.
    """
    check_labels(labels_R, base_mask_K)
    return focal_scaled_loss(
        mask_novel(logits_RK1, base_mask_K),
        labels_R,
        gamma=gamma,
        background_weight=background_weight,
        normalize=normalize,
    )


def mask_novel(logits_RK1: Tensor, base_mask_K: Tensor) -> Tensor:
    """Copy (R, K + 1) logits with minus infinity in the columns of classes that are not base."""
    novel = torch.cat([~base_mask_K, base_mask_K.new_zeros(1)])
    return logits_RK1.masked_fill(novel, float("-inf"))


def log_accuracy(logits_RK1: Tensor, labels_R: Tensor) -> None:
    """Put the scalars into the EventStorage that Detectron2's predictor does, in one transfer."""
    if not len(labels_R):
        return
    background = logits_RK1.shape[1] - 1
    guess_R, is_object_R = logits_RK1.argmax(dim=1), labels_R < background
    right_R, missed_R = guess_R == labels_R, is_object_R & (guess_R == background)
    counted = torch.stack([right_R, is_object_R, is_object_R & right_R, missed_R]).sum(dim=1)
    right, objects, right_objects, missed = counted.tolist()
    storage = get_event_storage()
    storage.put_scalar("fast_rcnn/cls_accuracy", right / len(labels_R))
    if objects:
        storage.put_scalar("fast_rcnn/fg_cls_accuracy", right_objects / objects)
        storage.put_scalar("fast_rcnn/false_negative", missed / objects)


def check_labels(labels_R: Tensor, base_mask_K: Tensor) -> None:
    """Raise a ValueError for (R,) labels, K for background, of a novel class or of none."""
    num_classes = len(base_mask_K)
    trained = torch.cat([base_mask_K, base_mask_K.new_ones(1)])
    inside = (labels_R >= 0) & (labels_R <= num_classes)
    right = inside & trained[labels_R.clamp(0, num_classes)]
    if right.all():
        return
    label = int(labels_R[~right][0])
    if not 0 <= label <= num_classes:
        raise ValueError(
            f"a training box has class number {label}, but the vocabulary has {num_classes} "
            "classes; MODEL.VOCABULARY.DATASET must have the classes of DATASETS.TRAIN"
        )
    raise ValueError(
        f"a training box is of the novel class number {label}; the data set is not base-only: "
        "DATASETS.TRAIN must be the split without boxes of novel classes"
    )
