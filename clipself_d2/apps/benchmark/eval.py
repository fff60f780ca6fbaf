"""Scoring of an LVIS-sized result: the fast scorer against the reference."""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from clipself_d2.apps.benchmark.measure import BenchmarkOptions, Row
from clipself_d2.evaluation import LVISOVEvaluator

# LVIS v1 val.
NUM_IMAGES = 19_809
NUM_CLASSES = {"r": 337, "c": 461, "f": 405}
NUM_DETECTIONS = 450_000
_OBJECTS_PER_IMAGE = 12
_IMAGE_SIDE = 640
_DATASET = "clipself_d2_benchmark_lvis"


@dataclass(frozen=True)
class Objects:
    """Made-up boxes, sorted by image.

    Attributes:
        images: (N,) number of the image, from 0.
        classes: (N,) number of the class, from 0.
        boxes: (N, 4) XYWH px.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray


def make_objects(num_images: int, rng: np.random.Generator) -> Objects:
    """Draw the ground truth; a few classes are in most images, as in LVIS.

    Args:
        num_images: Number of images.
        rng: Source of randomness.

    Returns:
        Twelve objects an image.
    """
    count = num_images * _OBJECTS_PER_IMAGE
    num_classes = sum(NUM_CLASSES.values())
    corner = rng.uniform(0, 0.7 * _IMAGE_SIDE, (count, 2))
    side = rng.uniform(8, 0.3 * _IMAGE_SIDE, (count, 2))
    return Objects(
        images=np.repeat(np.arange(num_images), _OBJECTS_PER_IMAGE),
        classes=(num_classes * rng.power(0.4, count)).astype(int),
        boxes=np.concatenate([corner, side], axis=1).round(2),
    )


def detect(truth: Objects, count: int, rng: np.random.Generator) -> tuple[Objects, np.ndarray]:
    """Draw detections: shifted objects, a third of them under a wrong class.

    Args:
        truth: The ground truth.
        count: Number of detections.
        rng: Source of randomness.

    Returns:
        The detections and their scores (N,).
    """
    chosen = np.sort(rng.integers(0, len(truth.images), count))
    classes = truth.classes[chosen]
    wrong = rng.random(count) < 1 / 3
    classes[wrong] = rng.integers(0, sum(NUM_CLASSES.values()), wrong.sum())
    boxes = truth.boxes[chosen] + rng.normal(0, 6, (count, 4))
    boxes[:, 2:] = boxes[:, 2:].clip(2)
    return Objects(truth.images[chosen], classes, boxes), rng.random(count)


def write_annotations(path: Path, truth: Objects, num_images: int) -> None:
    """Write ground truth as an LVIS file.

    Args:
        path: File to write.
        truth: The objects.
        num_images: Number of images.
    """
    rng = np.random.default_rng(1)
    num_classes = sum(NUM_CLASSES.values())
    frequency = [key for key, count in NUM_CLASSES.items() for _ in range(count)]
    # np.random.Generator.power draws the last classes most often: those are the frequent ones.
    images = [
        {
            "id": number + 1,
            "width": _IMAGE_SIDE,
            "height": _IMAGE_SIDE,
            "neg_category_ids": (rng.choice(num_classes, 4, replace=False) + 1).tolist(),
            "not_exhaustive_category_ids": [],
        }
        for number in range(num_images)
    ]
    for image in images:
        own = truth.classes[(image["id"] - 1) * _OBJECTS_PER_IMAGE :][:_OBJECTS_PER_IMAGE] + 1
        image["neg_category_ids"] = sorted(set(image["neg_category_ids"]) - set(own.tolist()))
        image["not_exhaustive_category_ids"] = [int(own[0])]
    annotations = [
        {
            "id": number + 1,
            "image_id": image + 1,
            "category_id": label + 1,
            "bbox": box,
            "area": box[2] * box[3],
        }
        for number, (image, label, box) in enumerate(
            zip(truth.images.tolist(), truth.classes.tolist(), truth.boxes.tolist(), strict=True)
        )
    ]
    categories = [
        {"id": number + 1, "name": f"class {number}", "frequency": letter}
        for number, letter in enumerate(frequency)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="ascii")


def predictions(found: Objects, scores: np.ndarray) -> Iterator[tuple[int, Instances]]:
    """Cut detections into images.

    Args:
        found: The detections.
        scores: (N,).

    Yields:
        Image id and Detectron2's result, for each image that has one.
    """
    numbers, starts = np.unique(found.images, return_index=True)
    for number, rows in zip(numbers, np.split(np.arange(len(scores)), starts[1:]), strict=True):
        boxes = torch.from_numpy(found.boxes[rows]).float()
        instances = Instances((_IMAGE_SIDE, _IMAGE_SIDE))
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        instances.scores = torch.from_numpy(scores[rows])
        instances.pred_classes = torch.from_numpy(found.classes[rows])
        yield int(number) + 1, instances


@contextmanager
def lvis_dataset(scale: float) -> Iterator[list[tuple[int, Instances]]]:
    """Register a made-up LVIS val for the time of a with block.

    Args:
        scale: Share of LVIS val, in (0, 1].

    Yields:
        The predictions for it, by image.

    Raises:
        ValueError: If ``scale`` is out of range.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"--scale is {scale}; it is a share of LVIS val in (0, 1]")
    rng = np.random.default_rng(0)
    num_images = math.ceil(NUM_IMAGES * scale)
    truth = make_objects(num_images, rng)
    found, scores = detect(truth, math.ceil(NUM_DETECTIONS * scale), rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis_val.json"
        write_annotations(path, truth, num_images)
        names = [f"class {number}" for number in range(sum(NUM_CLASSES.values()))]
        MetadataCatalog.pop(_DATASET, None)
        MetadataCatalog.get(_DATASET).set(
            json_file=str(path), thing_classes=names, evaluator_type="lvis_ov"
        )
        try:
            yield list(predictions(found, scores))
        finally:
            MetadataCatalog.pop(_DATASET, None)


def benchmark_evaluation(options: BenchmarkOptions) -> list[Row]:
    """Score made-up detections of LVIS val's size.

    Args:
        options: Scale, repeats, and whether the reference scorer runs too, once.

    Returns:
        A row for each scorer. ``collect s`` is the evaluator's own work while a model runs,
        ``score s`` that at the end; both by the wall, since the fast scorer has several threads.
    """
    rows: list[Row] = []
    backends = ("lvis", "hotcoco") if options.reference else ("hotcoco",)
    with lvis_dataset(options.scale) as found:
        for backend in backends:
            evaluator = LVISOVEvaluator(_DATASET, ("bbox",), distributed=False, backend=backend)
            evaluator.reset()
            start = time.perf_counter()
            for image_id, instances in found:
                evaluator.process([{"image_id": image_id}], [{"instances": instances}])
            collected = time.perf_counter()
            scores: Mapping[str, float] = evaluator.evaluate()["bbox"]
            seconds = time.perf_counter() - collected
            if backend == "hotcoco":
                seconds = _median_of_runs(evaluator, options.repeats)
            rows.append(
                {
                    "scorer": backend,
                    "images": math.ceil(NUM_IMAGES * options.scale),
                    "detections": sum(len(instances) for _, instances in found),
                    "classes": sum(NUM_CLASSES.values()),
                    "collect s": collected - start,
                    "score s": seconds,
                    "AP": scores["AP"],
                    "APr": scores["APr"],
                }
            )
    for row in rows if options.reference else ():
        row["speed ratio"] = rows[0]["score s"] / row["score s"]  # type: ignore[operator]
    return rows


def _median_of_runs(evaluator: LVISOVEvaluator, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        evaluator.evaluate()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
