"""Panoptic quality, without panopticapi.

Legend: K classes, H W pixels.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from clipself_d2.evaluation.semantic import sum_of_processes
from clipself_d2.parts.label_maps import check_segments, read_segment_colours, segment_ids

logger = logging.getLogger(__name__)

# A pair of this intersection over union or less is no match.
_MATCH = 0.5
Segment = Mapping[str, Any]


def true_segments(record: Mapping[str, Any]) -> np.ndarray:
    """Read the ids of a record's panoptic truth, (H, W) int32, and hold them against its rows."""
    ids = segment_ids(read_segment_colours(record["pan_seg_file_name"]))
    check_segments(ids, record["segments_info"], record["pan_seg_file_name"])
    return ids


def count_matches(
    predicted_ids: np.ndarray,
    predicted: Sequence[Segment],
    true_ids: np.ndarray,
    true: Sequence[Segment],
    num_classes: int,
) -> np.ndarray:
    """Match the segments of one picture.

    Args:
        predicted_ids: (H, W) ids; 0 is no segment.
        predicted: Segments with ``id`` and contiguous ``category_id``.
        true_ids: (H, W) ids of the truth; what no segment lists is void.
        true: The same of the truth, with ``iscrowd`` where a segment is a crowd.
        num_classes: K.

    Returns:
        (K, 4) float64: sum of the matches' intersections over unions, true positives, false
        positives, false negatives.

    Reference: Kirillov et al., arXiv 1801.00868, section 4, with the crowds of panopticapi: void is
    taken out of a prediction's area, and a prediction that is mostly void or crowd of its class is
    not counted.
    """
    true_by_id = {int(row["id"]): row for row in true}
    predicted_by_id = {int(row["id"]): row for row in predicted}
    crowds = {number for number, row in true_by_id.items() if row.get("iscrowd")}
    overlap = _overlaps(true_ids, predicted_ids)
    # Areas are summed over the overlaps, so that a predicted segment without a pixel has none.
    area_true, area_predicted = Counter[int](), Counter[int]()
    # Pixels of a prediction that are void, or of a crowd of its own class.
    void, ignored = Counter[int](), Counter[int]()
    for (t, p), size in overlap.items():
        area_true[t] += size
        area_predicted[p] += size
        if t not in true_by_id:
            void[p] += size
            ignored[p] += size
        elif t in crowds and _same_class(true_by_id[t], predicted_by_id.get(p)):
            ignored[p] += size
    counts = np.zeros((num_classes, 4))
    # A crowd that nobody finds is no miss.
    matched_true, matched_predicted = set(crowds), set[int]()
    for (t, p), size in overlap.items():
        row = true_by_id.get(t)
        if row is None or t in crowds or not _same_class(row, predicted_by_id.get(p)):
            continue
        iou = size / (area_true[t] + area_predicted[p] - size - void[p])
        # Above one half, of each segment at most one pair can be a match.
        if iou > _MATCH:
            counts[row["category_id"], :2] += iou, 1
            matched_true.add(t)
            matched_predicted.add(p)
    for t in true_by_id.keys() - matched_true:
        counts[true_by_id[t]["category_id"], 3] += 1
    for p in predicted_by_id.keys() - matched_predicted:
        if area_predicted[p] and ignored[p] / area_predicted[p] <= _MATCH:
            counts[predicted_by_id[p]["category_id"], 2] += 1
    return counts


def _overlaps(true_ids: np.ndarray, predicted_ids: np.ndarray) -> dict[tuple[int, int], int]:
    """Number of pixels by true and predicted id."""
    # Ids are below 2 to the 24, so that a pair fits into one number.
    pairs, sizes = np.unique((true_ids.astype(np.int64) << 32) | predicted_ids, return_counts=True)
    return {
        (int(pair) >> 32, int(pair) & 0xFFFFFFFF): int(size)
        for pair, size in zip(pairs, sizes, strict=True)
    }


def _same_class(true: Segment, predicted: Segment | None) -> bool:
    return predicted is not None and true["category_id"] == predicted["category_id"]


def panoptic_quality(counts: np.ndarray) -> dict[str, float]:
    """Average (K, 4) counts of ``count_matches`` over the classes that occur, in percent.

    ``PQ``, ``SQ`` and ``RQ``; NaN where no class occurs in truth or predictions.
    """
    quality, hits, false_hits, misses = counts.T
    seen = (hits + false_hits + misses) > 0
    if not seen.any():
        return dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
    half = (hits + 0.5 * false_hits + 0.5 * misses)[seen]
    # PQ = SQ * RQ class by class, but not of the means; a class without a match has an SQ of 0.
    segment = quality[seen] / np.maximum(hits[seen], 1)
    parts = {"PQ": quality[seen] / half, "SQ": segment, "RQ": hits[seen] / half}
    return {name: 100.0 * float(values.mean()) for name, values in parts.items()}


class PanopticQualityEvaluator(DatasetEvaluator):
    """Score panoptic maps: all classes, things, stuff, and base and novel classes where known.

    The result ``panoptic_seg`` has PQ, SQ and RQ in percent, and the same behind ``_thing``,
    ``_stuff``, ``_base`` and ``_novel``. Only counts are kept, so that neither batches nor
    processes change a number.

    Args:
        records: Records of the data set with ``file_name``, ``pan_seg_file_name`` and
            ``segments_info`` of contiguous classes.
        class_names: K names.
        is_thing: K flags, whether the class is countable.
        novel_mask: K flags, whether the class is novel; None knows no novel classes.
        distributed: Whether to sum the counts of all processes.

    Reference: arXiv 1801.00868, section 4.
    """

    def __init__(
        self,
        *,
        records: Sequence[Mapping[str, Any]],
        class_names: Sequence[str],
        is_thing: Sequence[bool],
        novel_mask: Sequence[bool] | None = None,
        distributed: bool = True,
    ) -> None:
        self._records = {record["file_name"]: record for record in records}
        self._names = tuple(class_names)
        self._is_thing = np.asarray(is_thing, bool)
        self._novel = None if novel_mask is None else np.asarray(novel_mask, bool)
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._counts = np.zeros((len(self._names), 4))

    def protocol(self) -> dict[str, object]:
        """Say by which rules the scores are made, in what JSON can hold."""
        return {
            "name": "panoptic quality",
            "classes": len(self._names),
            "novel_classes": 0 if self._novel is None else int(self._novel.sum()),
        }

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Match the segments of a batch.

        Inputs have ``file_name``, outputs ``panoptic_seg``: the map of ids, and segments. A
        ValueError says that sizes differ, or the truth's picture and file do not belong together.
        """
        for item, output in zip(inputs, outputs, strict=True):
            record = self._records[item["file_name"]]
            true_ids = true_segments(record)
            predicted, found = output["panoptic_seg"]
            predicted_ids = predicted.cpu().numpy()
            if predicted_ids.shape != true_ids.shape:
                raise ValueError(
                    f"the prediction for {item['file_name']} is {predicted_ids.shape}, but "
                    f"{record['pan_seg_file_name']} is {true_ids.shape} (height, width)"
                )
            segments = record["segments_info"]
            self._counts += count_matches(
                predicted_ids, found, true_ids, segments, len(self._names)
            )

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Average over classes: ``{"panoptic_seg": {metric: percent}}``.

        None in all processes but the first.
        """
        counts = sum_of_processes(self._counts, distributed=self._distributed)
        if counts is None:
            return None
        scores: dict[str, float] = {}
        rows = []
        for suffix, member in self._splits():
            quality = panoptic_quality(counts[member])
            scores |= {f"{name}{suffix}": value for name, value in quality.items()}
            rows.append([suffix.strip("_") or "all", int(member.sum()), *quality.values()])
        headers = ["classes", "number", "PQ", "SQ", "RQ"]
        table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f")
        logger.info("Panoptic quality:\n%s", table)
        return OrderedDict(panoptic_seg=scores)

    def _splits(self) -> list[tuple[str, np.ndarray]]:
        every = np.ones_like(self._is_thing)
        # A split of which no class occurs is NaN.
        splits = [("", every), ("_thing", self._is_thing), ("_stuff", ~self._is_thing)]
        if self._novel is not None and self._novel.any():
            splits += [("_base", ~self._novel), ("_novel", self._novel)]
        return splits
