"""What COCO and LVIS scoring share: careful reading, category ids, undefined scores."""

import json
import logging
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")


class Result(TypedDict, total=False):
    """One object in COCO's result format; boxes are XYWH px, masks run-length encoded."""

    image_id: int
    category_id: int
    score: float
    bbox: list[float]
    segmentation: dict[str, object]


class Prediction(TypedDict):
    """The objects of one image as Detectron2 collects them; category_id is a class index."""

    image_id: int
    instances: list[Result]


def read_annotation_file(
    path: str, required: Mapping[str, Sequence[str]]
) -> dict[str, list[dict[str, object]]]:
    """Read an annotation file, and refuse one that a scorer would misread or stumble over later.

    The fast scorer reads an empty object as a data set without images and fills absent fields
    with defaults; the reference scorers raise a bare ``KeyError``, and take an object with id 0
    for one that is never found.

    Args:
        path: The file.
        required: The lists that the file must hold, with the keys that each of their entries
            must have; one of the lists is ``annotations``, whose entries must have an ``id``.

    Returns:
        The file's content.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON, not an object, lacks a list or a key, or if annotation ids
            are not positive or not unique.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"annotation file {path} does not exist; set DETECTRON2_DATASETS, or json_file in the "
            "data set's metadata, to where it is"
        )
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"annotation file {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"annotation file {path} holds a {type(content).__name__}, expected an object with "
            f"the lists {', '.join(required)}"
        )
    for section, keys in required.items():
        entries = content.get(section)
        if not isinstance(entries, list):
            raise ValueError(f"annotation file {path} lacks the list {section!r}")
        for key in keys:
            lacking = sum(key not in entry for entry in entries)
            if lacking:
                raise ValueError(
                    f"annotation file {path} lacks the key {key!r} in {lacking} of its "
                    f"{len(entries)} {section}"
                )
    ids = [entry["id"] for entry in content["annotations"]]
    if len(set(ids)) != len(ids) or min(ids, default=1) < 1:
        raise ValueError(
            f"annotation file {path} has annotation ids that repeat or are below 1; number the "
            "annotations from 1"
        )
    return content


def dataset_results(
    predictions: Sequence[Prediction],
    category_ids: Sequence[int],
    image_ids: Container[int],
) -> list[Result]:
    """List predictions in COCO's result format, with the data set's own category ids.

    Args:
        predictions: One an image; left as they are, so that scoring twice is safe.
        category_ids: Category id of every class index.
        image_ids: Images of the annotation file.

    Returns:
        The results of all images.

    Raises:
        ValueError: If an image or a class index is unknown to the annotation file, or a score or
            a box is not finite.
    """
    results: list[Result] = []
    for prediction in predictions:
        if prediction["image_id"] not in image_ids:
            raise ValueError(
                f"predictions for image_id {prediction['image_id']!r}, which the annotation file "
                "does not list; loader and evaluator must name the same data set"
            )
        for instance in prediction["instances"]:
            label = instance["category_id"]
            if not 0 <= label < len(category_ids):
                raise ValueError(
                    f"a prediction has class index {label}, expected 0 to {len(category_ids) - 1}; "
                    "the model's vocabulary must be that of the data set"
                )
            if not all(map(math.isfinite, (instance["score"], *instance["bbox"]))):
                raise ValueError(
                    f"a prediction for image_id {prediction['image_id']!r} has score "
                    f"{instance['score']} and box {instance['bbox']}, which are not finite; such "
                    "results have no order"
                )
            results.append({**instance, "category_id": category_ids[label]})
    return results


def warn_undefined(task: str, scores: Mapping[str, float]) -> None:
    """Say in words which scores are NaN, and why.

    Args:
        task: What was scored, such as ``bbox``.
        scores: Percent by metric.
    """
    undefined = [name for name, score in scores.items() if math.isnan(score)]
    if undefined:
        logger.warning(
            "%s: no ground truth to score %s against; reported as NaN, which is not zero",
            task,
            ", ".join(undefined),
        )


class DetectionEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator with a choice of scorer; a scoring protocol is a subclass.

    Detectron2 collects the predictions, gathers them across processes, writes
    ``instances_predictions.pth`` and scores box proposals.
    """

    backends: ClassVar[tuple[str, ...]]
    required_keys: ClassVar[Mapping[str, Sequence[str]]]
    results_name: ClassVar[str]
    first_category_id: ClassVar[int]

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        backend: str = "hotcoco",
        max_dets_per_image: int | None = None,
    ) -> None:
        """Read the annotations.

        Args:
            dataset_name: Registered name; the metadata needs ``thing_classes``, and ``json_file``
                where the data set is not to be converted to COCO's format in ``output_dir``.
            tasks: Any of ``bbox`` and ``segm``; None scores what the model predicts.
            distributed: Whether to gather the predictions of all processes.
            output_dir: Folder for the predictions; None writes none.
            backend: Scorer, one of the class's ``backends``.
            max_dets_per_image: Most detections of an image that count; None is the protocol's.

        Raises:
            FileNotFoundError: If the annotation file does not exist.
            ValueError: If an option is unknown, the annotation file cannot be scored against, or
                it and the metadata disagree on the classes.
        """
        if backend not in self.backends:
            raise ValueError(
                f"backend is {backend!r}, expected one of {', '.join(self.backends)}; "
                "change TEST.BACKEND"
            )
        unknown = sorted(set(tasks or ()) - set(TASKS))
        if unknown:
            raise ValueError(f"tasks has {', '.join(unknown)}, expected any of {', '.join(TASKS)}")
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if json_file:
            path = PathManager.get_local_path(json_file)
            self._check_annotations(read_annotation_file(path, self.required_keys), path)
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
        )
        self._backend = backend
        self._json_file = PathManager.get_local_path(self._metadata.json_file)
        self._category_ids = self._read_category_ids()
        self._class_names: dict[int, str] = dict(
            zip(self._category_ids, self._metadata.thing_classes, strict=True)
        )

    def _check_annotations(
        self, content: Mapping[str, Sequence[Mapping[str, object]]], path: str
    ) -> None:
        """Refuse annotations that the protocol does not know; ``path`` is for the message."""

    def _read_category_ids(self) -> list[int]:
        """Return the category id of every class index, in the order of ``thing_classes``."""
        if self._metadata.get("thing_classes") is None:
            # Detectron2's register_coco_instances names the classes when the data are first read.
            DatasetCatalog.get(self._metadata.name)
        names = self._metadata.thing_classes
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            contiguous = {index + self.first_category_id: index for index in range(len(names))}
        category_ids = sorted(contiguous, key=contiguous.__getitem__)
        listed = sorted(self._coco_api.getCatIds())
        indices = [contiguous[category_id] for category_id in category_ids]
        if listed != sorted(category_ids) or indices != list(range(len(names))):
            raise ValueError(
                f"{self._json_file} lists {len(listed)} categories, but the metadata has "
                f"{len(names)} thing_classes and ids for {len(category_ids)}; scoring needs the "
                "same classes in both"
            )
        return category_ids

    def _tasks_from_predictions(self, predictions: Sequence[Result]) -> list[str]:
        """Return the tasks that predictions and annotations allow; key points are not scored."""
        if not any("segmentation" in prediction for prediction in predictions):
            return ["bbox"]
        if self._truth_has_masks():
            return ["bbox", "segm"]
        logger.warning("%s has objects without masks; only boxes are scored", self._json_file)
        return ["bbox"]

    def _truth_has_masks(self) -> bool:
        return all(entry.get("segmentation") for entry in self._coco_api.anns.values())

    def _eval_predictions(
        self,
        predictions: Sequence[Prediction],
        img_ids: Sequence[int] | None = None,
    ) -> None:
        """Score the predictions and fill ``self._results`` by task."""
        results = dataset_results(predictions, self._category_ids, self._coco_api.imgs)
        if self._output_dir:
            with PathManager.open(str(Path(self._output_dir) / self.results_name), "w") as stream:
                json.dump(results, stream)
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            if task == "segm":
                self._check_masks(results)
            own = [_geometry_of(task, result) for result in results]
            self._results[task] = self._score(own, task, img_ids)

    def _check_masks(self, results: Sequence[Result]) -> None:
        """Refuse to score boxes as masks, which the scorers do without a word."""
        if any("segmentation" not in result for result in results):
            raise ValueError("tasks has segm, but the model predicts no masks (pred_masks)")
        if not self._truth_has_masks():
            raise ValueError(f"tasks has segm, but {self._json_file} has objects without masks")

    def _score(
        self,
        results: list[dict[str, Any]],
        task: str,
        img_ids: Sequence[int] | None,
    ) -> dict[str, float]:
        """Return percent by metric; ``results`` may be empty and may be changed."""
        raise NotImplementedError


def _geometry_of(task: str, result: Result) -> dict[str, Any]:
    """Copy a result with the geometry of one task only.

    The scorers take a result's area from its box where it has one, but small, medium and large
    masks are defined by the area of the mask. They also add fields, hence the copy.
    """
    other = "bbox" if task == "segm" else "segmentation"
    return {key: value for key, value in result.items() if key != other}
