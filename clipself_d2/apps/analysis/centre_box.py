"""The trivial answer to a referring expression, as a floor for what a model scores.

Legend: H W pixels of a picture.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from clipself_d2.command_line.ranges import check_registered
from clipself_d2.data.referring_mapper import decode_segmentations
from clipself_d2.evaluation.referring import score_pair, summarise

# Sizes are counted in parts of the picture's sides.
STEPS = 16


def score_centre_box(train: str, test: str) -> tuple[tuple[int, int], dict[str, float]]:
    """Score a box that ignores picture and sentence: the most frequent size, at the centre.

    The size is that of the data set ``train``; ``test`` is scored, a pair for each sentence.

    Returns:
        Width and height of the box in sixteenths of the picture, and the metrics of
        ``ReferringEvaluator``.
    """
    size = most_frequent_size(_records(train))
    pairs = []
    for record in _records(test):
        truth = torch.from_numpy(_mask(record))
        pairs.append(score_pair(centre_box(truth.shape[0], truth.shape[1], size), truth))
    return size, summarise(pairs)


def most_frequent_size(records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Find the size of most objects, width and height in sixteenths; of equals the first seen."""
    sizes: Counter[tuple[int, int]] = Counter()
    for record in records:
        mask = _mask(record)
        if mask.any():
            rows, columns = np.nonzero(mask)
            sizes[_part(columns, mask.shape[1]), _part(rows, mask.shape[0])] += 1
    if not sizes:
        raise ValueError("no reference has an object; give a data set with targets as --train")
    return sizes.most_common(1)[0][0]


def centre_box(height: int, width: int, size: tuple[int, int]) -> torch.Tensor:
    """Draw a box of (width, height) in sixteenths as an (H, W) bool mask."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    # Sizes are width first, masks height first.
    across, down = round(width * size[0] / STEPS), round(height * size[1] / STEPS)
    left, top = (width - across) // 2, (height - down) // 2
    mask[top : top + down, left : left + across] = True
    return mask


def _part(places: np.ndarray, side: int) -> int:
    return max(1, round(int(places.max() - places.min() + 1) * STEPS / side))


def _mask(record: Mapping[str, Any]) -> np.ndarray:
    return decode_segmentations(
        record["segmentations"], int(record["height"]), int(record["width"])
    )


def _records(name: str) -> list[dict[str, Any]]:
    check_registered([name], "--train or --test")
    records: list[dict[str, Any]] = DatasetCatalog.get(name)
    if not records or "segmentations" not in records[0]:
        raise ValueError(f"{name} has no referring expressions; give one such as emoji_refer_val")
    return records
