"""The course of a COCO or LVIS evaluation: predictions, results, scores, a table of classes."""

import contextlib
import copy
import importlib.util
import io
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.file_io import PathManager
from pycocotools.coco import COCO

from clipself_d2.evaluation.class_table import class_facts, novel_names, write_class_table
from clipself_d2.evaluation.prediction_log import PredictionLog
from clipself_d2.evaluation.results import (
    Result,
    Survey,
    TaskResults,
    dataset_results,
    write_results,
)
from clipself_d2.parts.annotation_truth import Truth, read_truth
from clipself_d2.parts.metadata import metadata_with_classes

logger = logging.getLogger(__name__)

TASKS = ("bbox", "segm")


class DetectionEvaluator(COCOEvaluator):
    """Detectron2's COCO evaluator with a choice of scorer; a scoring protocol is a subclass.

    Predictions are kept on disk, in a file a process, and joined in the order of the processes,
    which is that of the data set: neither batches nor processes change a number. Memory holds the
    annotations, two numbers a prediction, and what the scorer needs. Box proposals are scored by
    Detectron2.

    With ``output_dir``, a JSON file has the results in COCO's format, and ``classes_<task>.csv``
    the scores of every class.
    """

    backends: ClassVar[tuple[str, ...]]
    purpose: ClassVar[str]
    required_keys: ClassVar[Mapping[str, Sequence[str]]]
    results_name: ClassVar[str]
    first_category_id: ClassVar[int]
    usual_max_dets: ClassVar[int]

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
                where the data set is not to be converted to COCO's format in ``output_dir``. It
                may have ``novel_classes``, a list of names.
            tasks: Any of ``bbox`` and ``segm``; None scores what the model predicts.
            distributed: Whether to gather the predictions of all processes.
            output_dir: Folder for the predictions and the classes' scores; None writes none.
            backend: Scorer, one of the class's ``backends``; they give the same numbers.
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
        # Before the parent reads the file, whose errors name neither file nor fault.
        truth = self._read_truth(dataset_name)
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image or self.usual_max_dets,
            use_fast_impl=False,
        )
        self._backend = self._usable(backend)
        self._json_file = PathManager.get_local_path(self._metadata.json_file)
        self._take(truth)
        self._category_ids = self._read_category_ids()
        self._class_names: dict[int, str] = dict(
            zip(self._category_ids, self._metadata.thing_classes, strict=True)
        )
        self._novel = novel_names(self._metadata, self._metadata.thing_classes)

    def _for_reference(self, results: TaskResults, path: str) -> str | list[Result]:
        """What a reference loads: it cannot load an empty list, but a box of no class."""
        if results.survey.num_results or self._backend == "hotcoco":
            return path
        image_id = next(iter(self._coco_api.imgs))
        return [{"image_id": image_id, "category_id": -1, "bbox": [0.0] * 4, "score": 0.0}]

    def _usable(self, backend: str) -> str:
        """The reference in place of a scorer that is not installed: the same numbers, later."""
        reference = self.backends[-1]
        if backend == reference or importlib.util.find_spec(backend) is not None:
            return backend
        logger.warning("%s is not installed; %s scores in its place, slower", backend, reference)
        return reference

    def _read_truth(self, dataset_name: str) -> Truth | None:
        """Read and check the annotations; None where Detectron2 is to write the file."""
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if not json_file:
            return None
        return read_truth(
            PathManager.get_local_path(json_file),
            purpose=self.purpose,
            required=self.required_keys,
            remedy="correct it, or set json_file in the data set's metadata, or "
            "DETECTRON2_DATASETS, to another",
        )

    def _take(self, truth: Truth | None) -> None:
        """Let all scorers read the annotations as they were mended."""
        # Made by the parent.
        api: Any = vars(self)["_coco_api"]
        self._scored_api, self._scored_file = api, self._json_file
        self._image_numbers = truth.image_numbers if truth else None
        if truth is None or truth.numbered is None:
            return
        self._coco_api = _coco_api(truth.content)
        self._scored_api = _coco_api(truth.numbered)
        self._folder = TemporaryDirectory(prefix="annotations_")
        self._scored_file = str(Path(self._folder.name) / "annotations.json")
        Path(self._scored_file).write_text(json.dumps(truth.numbered), encoding="ascii")

    def _number(self, image_id: object) -> Any:
        """Return the id of an image as the scorers know it."""
        return self._image_numbers[image_id] if self._image_numbers else image_id

    def _numbered(self, read: Callable[[], Iterator[Result]]) -> Iterator[Result]:
        for result in read():
            yield {**result, "image_id": self._number(result["image_id"])}

    def _read_category_ids(self) -> list[int]:
        """Return the category id of every class index, in the order of ``thing_classes``."""
        names = metadata_with_classes(self._metadata.name).thing_classes
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            # As Detectron2: COCO's ids are then the indices, LVIS's begin at 1.
            contiguous = {index + self.first_category_id: index for index in range(len(names))}
        category_ids = sorted(contiguous, key=contiguous.__getitem__)
        listed = sorted(self._coco_api.getCatIds())
        indices = [contiguous[category_id] for category_id in category_ids]
        if listed != sorted(category_ids) or indices != list(range(len(names))):
            raise ValueError(
                f"{self._json_file} lists {len(listed)} categories, but the metadata has "
                f"{len(names)} thing_classes and ids for {len(category_ids)}, expected the same"
            )
        return category_ids

    def protocol(self) -> dict[str, object]:
        """Say by which rules the scores are made, in what JSON can hold."""
        return {
            "scorer": self._backend,
            "annotations": self._json_file,
            "classes": len(self._category_ids),
            "novel_classes": len(self._novel),
        }

    def reset(self) -> None:
        """Forget all predictions."""
        # Detectron2's ``process`` appends to it as to a list.
        self._predictions = PredictionLog(self._output_dir)

    def evaluate(
        self, img_ids: Sequence[int] | None = None
    ) -> "OrderedDict[str, dict[str, float]]":
        """Score the predictions of all processes: percent by metric, by task.

        Empty in all processes but the first, and if no image was seen. ``img_ids`` of None scores
        all images; a ValueError says that predictions do not fit the annotations or the tasks.
        """
        log = self._predictions.gather() if self._distributed else self._predictions
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()
        if log is None:
            return self._results
        first: Mapping[str, Any] = next(iter(log), {})
        if not first:
            logger.warning("no image was predicted; there is nothing to evaluate")
        if "proposals" in first:
            self._eval_box_proposals(list(log))
        if "instances" in first:
            self._eval_predictions(log, img_ids)
        # So that callers can do with it what they like.
        return copy.deepcopy(self._results)

    def _eval_predictions(
        self, predictions: PredictionLog, img_ids: Sequence[int] | None = None
    ) -> None:
        """Write the results, and score them by every task into ``self._results``."""
        folder = Path(self._output_dir) if self._output_dir else predictions.folder
        read = partial(dataset_results, predictions, self._category_ids, self._coco_api.imgs)
        survey = Survey()
        write_results(folder / self.results_name, survey.see(read()))
        scored_ids = None if img_ids is None else [self._number(i) for i in img_ids]
        for task in self._choose_tasks(survey):
            results = TaskResults(task, partial(self._numbered, read), survey, predictions.folder)
            self._results[task], class_scores = self._score(results, scored_ids)
            if self._output_dir:
                facts = class_facts(self._coco_api, self._class_names, self._novel, img_ids)
                write_class_table(folder / f"classes_{task}.csv", facts, class_scores)

    def _choose_tasks(self, survey: Survey) -> list[str]:
        """Return the tasks asked for, or all that can be scored; key points cannot.

        The scorers score boxes as masks without a word, which is refused here.
        """
        truth_has_masks = all(a.get("segmentation") for a in self._coco_api.anns.values())
        if survey.num_masks and not self._tasks and not truth_has_masks:
            logger.warning("%s has objects without masks; only boxes are scored", self._json_file)
        predicted = ["bbox", "segm"] if survey.num_masks and truth_has_masks else ["bbox"]
        tasks = sorted(self._tasks or predicted)
        if "segm" in tasks and survey.num_masks < survey.num_results:
            raise ValueError("tasks has segm, but the model predicts no masks (pred_masks)")
        if "segm" in tasks and not truth_has_masks:
            raise ValueError(f"tasks has segm, but {self._json_file} has objects without masks")
        return tasks

    def _score(
        self, results: TaskResults, img_ids: Sequence[int] | None
    ) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
        """Return percent by metric, and the score of every class in 0 to 1 by category id.

        The one thing that a protocol adds; it calls nothing of this class.
        """
        raise NotImplementedError


def _coco_api(content: Mapping[str, Any]) -> COCO:
    api = COCO()
    api.dataset = dict(content)
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api
