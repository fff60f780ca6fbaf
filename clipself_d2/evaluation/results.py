"""What COCO and LVIS predictions must be to be scored, and how they are read."""

import contextlib
import json
import logging
import math
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from detectron2.structures import Instances

from clipself_d2.parts.words import shortened

logger = logging.getLogger(__name__)


class Result(TypedDict, total=False):
    """One object in COCO's result format; boxes are XYWH px, masks run-length encoded."""

    image_id: int
    category_id: int
    score: float
    bbox: list[float]
    segmentation: dict[str, object]


class Prediction(TypedDict, total=False):
    """What a model found in one image; the category_id of ``instances`` is a class index."""

    image_id: int
    instances: list[Result]
    proposals: Instances


def dataset_results(
    predictions: Iterable[Prediction], category_ids: Sequence[int], image_ids: Container[int]
) -> Iterator[Result]:
    """Yield predictions in COCO's result format, with the data set's own category ids.

    Of an image that comes again, as samplers that fill up the last batch make it, the first
    prediction counts. A ValueError says that an image or a class index is unknown to the annotation
    file, or a score or a box not finite.
    """
    seen: set[int] = set()
    repeated = 0
    for prediction in predictions:
        image_id = prediction["image_id"]
        if image_id not in image_ids:
            raise ValueError(
                f"predictions for image_id {image_id!r}, which the annotation file "
                "does not list; loader and evaluator must name the same data set"
            )
        if image_id in seen:
            repeated += 1
            continue
        seen.add(image_id)
        for instance in prediction.get("instances", ()):
            label = instance["category_id"]
            if not 0 <= label < len(category_ids):
                raise ValueError(
                    f"a prediction has class index {label}, expected 0 to {len(category_ids) - 1}; "
                    "the model's vocabulary must be that of the data set"
                )
            if not all(map(math.isfinite, (instance["score"], *instance["bbox"]))):
                raise ValueError(
                    f"a prediction for image_id {image_id!r} has score {instance['score']} and box "
                    f"{instance['bbox']}, which are not finite"
                )
            yield {**instance, "category_id": category_ids[label]}
    if repeated:
        logger.warning("%d images were predicted more than once; the first time counts", repeated)


@dataclass
class Survey:
    """What is remembered of results that stay on disk.

    Attributes:
        num_masks: Number of results with a mask.
        category_ids: Category id of every result.
        scores: Score of every result.
    """

    num_masks: int = 0
    # Eight bytes a number; a list of Python's takes several times as much.
    category_ids: "array[int]" = field(default_factory=lambda: array("q"))
    scores: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def num_results(self) -> int:
        """Number of results."""
        return len(self.scores)

    def see(self, results: Iterable[Result]) -> Iterator[Result]:
        """Take note of results on their way, and yield the same."""
        for result in results:
            self.num_masks += "segmentation" in result
            self.category_ids.append(result["category_id"])
            self.scores.append(result["score"])
            yield result


def write_results(path: Path, results: Iterable[Mapping[str, object]]) -> None:
    """Write results as a JSON list, one at a time."""
    with path.open("w", encoding="ascii") as stream:
        stream.write("[")
        for number, result in enumerate(results):
            stream.write((",\n" if number else "") + json.dumps(result))
        stream.write("]")


@dataclass(frozen=True)
class TaskResults:
    """The results of one task, for scorers that read a file.

    Attributes:
        task: ``bbox`` or ``segm``.
        read: Gives all results, anew at every call.
        survey: What is known of them.
        folder: Where files are written for the time of their use.
    """

    task: str
    read: Callable[[], Iterable[Result]]
    survey: Survey
    folder: Path

    @contextlib.contextmanager
    def file(
        self,
        *,
        chosen_N: Iterable[bool] | None = None,
        change: Callable[[Result], Result] | None = None,
    ) -> Iterator[str]:
        """Write the results for the time of a with block, with the geometry of the task only.

        The scorers take a result's area from its box where it has one, but small, medium and large
        masks are defined by the area of the mask. ``chosen_N`` of None writes all; ``change`` is
        called with a copy of each, for one in its place.
        """
        results: Iterable[Result] = map(self._of_task, self.read())
        if chosen_N is not None:
            results = (r for r, chosen in zip(results, chosen_N, strict=True) if chosen)
        path = self.folder / f"{self.task}.json"
        write_results(path, results if change is None else map(change, results))
        try:
            yield str(path)
        finally:
            # The results of LVIS take gigabytes.
            path.unlink()

    def _of_task(self, result: Result) -> Result:
        copy = result.copy()
        if self.task == "segm":
            copy.pop("bbox", None)
        else:
            copy.pop("segmentation", None)
        return copy


def best_of_each_class(
    category_N: npt.NDArray[np.int64], score_N: npt.NDArray[np.float64], limit: int
) -> npt.NDArray[np.bool_]:
    """Choose at most ``limit`` results of highest score in every class, over all images: (N,) bool.

    Of equal scores the earlier is the better.
    """
    # By class, then by falling score; the sort is stable.
    order_N = np.lexsort((-score_N, category_N))
    _, size_K = np.unique(category_N, return_counts=True)
    chosen_N = np.zeros(len(order_N), dtype=bool)
    for own in np.split(order_N, np.cumsum(size_K)[:-1]):
        chosen_N[own[:limit]] = True
    return chosen_N


def warn_undefined(task: str, scores: Mapping[str, float]) -> None:
    """Say in words which scores (percent by metric) of a task are NaN, and why."""
    undefined = [name for name, score in scores.items() if math.isnan(score)]
    if undefined:
        logger.warning(
            "%s: no ground truth to score %s against; reported as NaN, which is not zero",
            task,
            shortened(undefined),
        )
