"""Mean intersection over union of semantic maps.

Legend: K classes, H W pixels.
"""

import csv
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]


class SemanticEvaluator(DatasetEvaluator):
    """Score semantic maps, with base and novel classes apart where they are known.

    The result ``sem_seg`` has, in percent: ``mIoU``, the mean over the classes that occur in the
    truth, as Detectron2 has computed it since July 2022; ``mIoU_union``, the mean over those that
    occur in truth or prediction, as its releases up to 0.6 did, which is lower where there are many
    classes; ``fwIoU``, ``mACC`` and ``pACC`` as Detectron2 names them; and ``mIoU_<split>`` for
    ``base`` and ``novel``, ``thing`` and ``stuff``. Only counts are kept, so that neither batches
    nor processes change a number.

    Args:
        records: Records of the data set, with ``file_name``.
        read_truth: From a record to (H, W) labels.
        class_names: K names.
        ignore_label: Label of pixels that do not count.
        novel_mask: K flags, whether the class is novel; None knows no novel classes.
        is_thing: K flags, whether the class is countable; None does not tell.
        fold_from: Predictions of this class and all behind it count as this class, as the
            background of VOC-20b; None folds none.
        output_dir: Folder of ``classes.csv``; None writes none.
        distributed: Whether to sum the counts of all processes.
    """

    def __init__(
        self,
        *,
        records: Sequence[Record],
        read_truth: Callable[[Record], np.ndarray],
        class_names: Sequence[str],
        ignore_label: int = 255,
        novel_mask: Sequence[bool] | None = None,
        is_thing: Sequence[bool] | None = None,
        fold_from: int | None = None,
        output_dir: str | None = None,
        distributed: bool = True,
    ) -> None:
        self._records = {record["file_name"]: record for record in records}
        self._read_truth = read_truth
        self._names = tuple(class_names)
        self._ignore = ignore_label
        self._masks: dict[str, np.ndarray] = {}
        for names, flags in ((("novel", "base"), novel_mask), (("thing", "stuff"), is_thing)):
            if flags is not None and any(flags):
                member = np.asarray(flags, bool)
                self._masks |= {names[0]: member, names[1]: ~member}
        self._fold = fold_from
        self._output_dir = output_dir
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        # Of every class: pixels of both, of the truth, of the prediction.
        self._counts = np.zeros((3, len(self._names)), np.int64)

    def protocol(self) -> dict[str, object]:
        """Say by which rules the scores are made, in what JSON can hold."""
        return {
            "name": "semantic segmentation",
            "classes": len(self._names),
            "mIoU": "classes present in the truth",
            "mIoU_union": "classes present in truth or prediction",
            "ignore_label": self._ignore,
        }

    def process(self, inputs: Sequence[Record], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of a batch; outputs have ``sem_seg``, (K, H, W) scores.

        A ValueError says that sizes differ or a label of the truth is no class.
        """
        for item, output in zip(inputs, outputs, strict=True):
            record = self._records[item["file_name"]]
            truth = self._read_truth(record)
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()
            if predicted.shape != truth.shape:
                raise ValueError(
                    f"the prediction for {item['file_name']} is {predicted.shape}, but its label "
                    f"map is {truth.shape} (height, width)"
                )
            counted = truth != self._ignore
            truth, predicted = truth[counted], predicted[counted]
            count = len(self._names)
            wrong = truth[(truth < 0) | (truth >= count)]
            if len(wrong):
                path = record.get("sem_seg_file_name", item["file_name"])
                raise ValueError(
                    f"label map {path} has the label {int(wrong[0])}, but there are {count} "
                    f"classes, 0 to {count - 1}, and {self._ignore} is ignored"
                )
            if self._fold is not None:
                # Before the count, for which predictions have more classes than the truth.
                predicted = np.minimum(predicted, self._fold)
            # Labels of the pixels on which truth and prediction agree.
            both = truth[truth == predicted]
            for row, labels in enumerate((both, truth, predicted)):
                self._counts[row] += np.bincount(labels, minlength=count)

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Average over classes: ``{"sem_seg": {metric: percent}}``.

        None in all processes but the first.
        """
        counts = sum_of_processes(self._counts, distributed=self._distributed)
        if counts is None:
            return None
        both, truth, predicted = counts.astype(np.float64)
        union = truth + predicted - both
        iou, accuracy = _ratio(both, union), _ratio(both, truth)
        present = truth > 0
        scores = {
            "mIoU": _mean(iou[present]),
            "mIoU_union": _mean(iou[union > 0]),
            # By frequency: each class weighs what it has of the truth's pixels.
            "fwIoU": 100.0 * float((_ratio(truth, truth.sum()) * iou)[present].sum()),
            "mACC": _mean(accuracy[present]),
            "pACC": 100.0 * float(_ratio(both.sum(), truth.sum())),
        }
        scores |= {
            f"mIoU_{name}": _mean(iou[present & member]) for name, member in self._masks.items()
        }
        shown = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
        logger.info("Semantic segmentation, %d classes in the truth: %s", present.sum(), shown)
        if self._output_dir is not None:
            self._write_classes(iou, accuracy, counts)
        return OrderedDict(sem_seg=scores)

    def _write_classes(self, iou: np.ndarray, accuracy: np.ndarray, counts: np.ndarray) -> None:
        path = Path(str(self._output_dir)) / "classes.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "split", "IoU", "accuracy", "truth_px", "predicted_px"])
            novel = self._masks.get("novel")
            for number, name in enumerate(self._names):
                split = "" if novel is None else ("novel" if novel[number] else "base")
                figures = [100.0 * float(values[number]) for values in (iou, accuracy)]
                writer.writerow([name, split, *figures, *counts[1:, number].tolist()])


def sum_of_processes(counts: np.ndarray, *, distributed: bool) -> np.ndarray | None:
    """Add up what every process has counted; None in all processes but the first."""
    if not distributed:
        return counts
    comm.synchronize()
    parts = comm.gather(counts, dst=0)
    return np.sum(parts, axis=0) if comm.is_main_process() else None


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN-free division: 0 where there is nothing."""
    return np.asarray(part / np.maximum(whole, 1))


def _mean(values: np.ndarray) -> float:
    return 100.0 * float(values.mean()) if len(values) else float("nan")
