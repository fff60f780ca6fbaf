"""What COCO and LVIS scoring share: predictions on disk, category ids, a table of classes."""

import contextlib
import copy
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.file_io import PathManager

from clipself_d2.evaluation.class_table import write_class_table
from clipself_d2.evaluation.prediction_log import PredictionLog
from clipself_d2.evaluation.results import (
    Result,
    Survey,
    dataset_results,
    pack_proposals,
    read_annotation_file,
    unpack_proposals,
    write_results,
)
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
    required_keys: ClassVar[Mapping[str, Sequence[str]]]
    results_name: ClassVar[str]
    first_category_id: ClassVar[int]
    usual_max_dets: ClassVar[int]
    has_fixed_ap: ClassVar[bool] = False

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        backend: str = "hotcoco",
        max_dets_per_image: int | None = None,
        fixed_ap: bool = False,
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
            fixed_ap: Whether to add Fixed AP, which is LVIS's.

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
        if fixed_ap and not self.has_fixed_ap:
            raise ValueError(f"fixed_ap is a score of LVIS, which {type(self).__name__} lacks")
        json_file = MetadataCatalog.get(dataset_name).get("json_file")
        if json_file:
            path = PathManager.get_local_path(json_file)
            self._check_annotations(read_annotation_file(path, self.required_keys), path)
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image or self.usual_max_dets,
            use_fast_impl=False,
        )
        self._backend = backend
        self._fixed_ap = fixed_ap
        self._json_file = PathManager.get_local_path(self._metadata.json_file)
        self._category_ids = self._read_category_ids()
        self._class_names: dict[int, str] = dict(
            zip(self._category_ids, self._metadata.thing_classes, strict=True)
        )
        self._novel = self._read_novel()

    def _check_annotations(
        self, content: Mapping[str, Sequence[Mapping[str, object]]], path: str
    ) -> None:
        """Refuse annotations that the protocol does not know; ``path`` is for the message."""

    def _read_category_ids(self) -> list[int]:
        """Return the category id of every class index, in the order of ``thing_classes``."""
        names = metadata_with_classes(self._metadata.name).thing_classes
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

    def _read_novel(self) -> frozenset[str]:
        """Return the names of the novel classes; empty where none are told apart."""
        novel = frozenset(self._metadata.get("novel_classes") or ())
        strangers = sorted(novel.difference(self._metadata.thing_classes))
        if strangers:
            raise ValueError(
                f"novel_classes of {self._metadata.name} has {', '.join(strangers)}, not among "
                "its thing_classes"
            )
        return novel

    def protocol(self) -> dict[str, object]:
        """Say by which rules the scores are made.

        Returns:
            Names and numbers for a report; what JSON can hold.
        """
        return {
            "scorer": self._backend,
            "annotations": self._json_file,
            "classes": len(self._category_ids),
            "novel_classes": len(self._novel),
        }

    def reset(self) -> None:
        """Forget all predictions."""
        self._log = PredictionLog(self._output_dir)

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the predictions of a batch to disk.

        Args:
            inputs: One mapping an image with ``image_id``.
            outputs: One mapping an image with ``instances`` or ``proposals``.
        """
        records = []
        for item, output in zip(inputs, outputs, strict=True):
            record = {"image_id": item["image_id"]}
            if "instances" in output:
                found = output["instances"].to(self._cpu_device)
                record["instances"] = instances_to_coco_json(found, item["image_id"])
            if "proposals" in output:
                record["proposals"] = pack_proposals(output["proposals"].to(self._cpu_device))
            if len(record) > 1:
                records.append(record)
        self._log.append(records)

    def evaluate(
        self, img_ids: Sequence[int] | None = None
    ) -> "OrderedDict[str, dict[str, float]]":
        """Score the predictions of all processes.

        Args:
            img_ids: Images to score; None is all.

        Returns:
            Percent by metric, by task; empty in all processes but the first, and if no image was
            seen.

        Raises:
            ValueError: If predictions do not fit the annotations or the tasks.
        """
        log = self._log.gather() if self._distributed else self._log
        self._results: OrderedDict[str, dict[str, float]] = OrderedDict()
        if log is None:
            return self._results
        first = next(iter(log), None)
        if first is None:
            logger.warning("no image was predicted; there is nothing to evaluate")
            return self._results
        if "proposals" in first:
            packed = [(record["image_id"], record["proposals"]) for record in log]
            proposals = [{"image_id": i, "proposals": unpack_proposals(p)} for i, p in packed]
            self._eval_box_proposals(proposals)
        if "instances" in first:
            self._evaluate_instances(log, img_ids)
        # So that callers can do with it what they like.
        return copy.deepcopy(self._results)

    def _evaluate_instances(self, log: PredictionLog, img_ids: Sequence[int] | None) -> None:
        """Score the predictions and fill ``self._results`` by task."""
        folder = Path(self._output_dir) if self._output_dir else log.folder
        survey = Survey()
        write_results(folder / self.results_name, survey.see(self._results_of(log)))
        for task in sorted(self._tasks or self._tasks_of(survey)):
            if task == "segm":
                self._check_masks(survey)
            scores, class_scores = self._score(log, survey, task, img_ids)
            self._results[task] = scores
            if self._output_dir:
                facts = self._class_facts(img_ids)
                write_class_table(folder / f"classes_{task}.csv", facts, class_scores)

    def _results_of(self, log: PredictionLog) -> Iterator[Result]:
        return dataset_results(log, self._category_ids, self._coco_api.imgs)

    def _tasks_of(self, survey: Survey) -> list[str]:
        """Return the tasks that predictions and annotations allow; key points are not scored."""
        if survey.num_masks == 0:
            return ["bbox"]
        if self._truth_has_masks():
            return ["bbox", "segm"]
        logger.warning("%s has objects without masks; only boxes are scored", self._json_file)
        return ["bbox"]

    def _truth_has_masks(self) -> bool:
        return all(entry.get("segmentation") for entry in self._coco_api.anns.values())

    def _check_masks(self, survey: Survey) -> None:
        """Refuse to score boxes as masks, which the scorers do without a word."""
        if survey.num_masks < survey.num_results:
            raise ValueError("tasks has segm, but the model predicts no masks (pred_masks)")
        if not self._truth_has_masks():
            raise ValueError(f"tasks has segm, but {self._json_file} has objects without masks")

    @contextlib.contextmanager
    def _results_file(
        self,
        log: PredictionLog,
        task: str,
        chosen_N: Iterable[bool] | None = None,
    ) -> Iterator[str]:
        """Write the results of one task for a scorer, for the time of a with block."""
        results: Iterable[Result] = self._results_of(log)
        if chosen_N is not None:
            results = (r for r, chosen in zip(results, chosen_N, strict=True) if chosen)
        path = log.folder / f"{task}.json"
        write_results(path, (self._for_scorer(result, task) for result in results))
        try:
            yield str(path)
        finally:
            path.unlink()

    def _for_scorer(self, result: Result, task: str) -> dict[str, Any]:
        """Copy a result with the geometry of one task only.

        The scorers take a result's area from its box where it has one, but small, medium and
        large masks are defined by the area of the mask.
        """
        other = "bbox" if task == "segm" else "segmentation"
        return {key: value for key, value in result.items() if key != other}

    def _class_facts(self, img_ids: Sequence[int] | None) -> dict[str, Sequence[str | int]]:
        """Return the columns of the class table that are no scores, by category id."""
        chosen = None if img_ids is None else set(img_ids)
        images: dict[int, set[int]] = {category_id: set() for category_id in self._category_ids}
        instances = dict.fromkeys(self._category_ids, 0)
        for entry in self._coco_api.anns.values():
            counted = chosen is None or entry["image_id"] in chosen
            if counted and not entry.get("iscrowd"):
                images[entry["category_id"]].add(entry["image_id"])
                instances[entry["category_id"]] += 1
        ids = sorted(self._category_ids)
        names = [self._class_names[category_id] for category_id in ids]
        split = {True: "novel", False: "base"} if self._novel else {False: "all"}
        facts: dict[str, Sequence[str | int]] = {
            "class": names,
            "category_id": ids,
            "split": [split[name in self._novel] for name in names],
        }
        frequencies = [self._coco_api.cats[category_id].get("frequency") for category_id in ids]
        if all(frequencies):
            facts["frequency"] = frequencies
        facts["images"] = [len(images[category_id]) for category_id in ids]
        facts["instances"] = [instances[category_id] for category_id in ids]
        return facts

    def _score(
        self,
        log: PredictionLog,
        survey: Survey,
        task: str,
        img_ids: Sequence[int] | None,
    ) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
        """Return percent by metric, and the score of every class in 0 to 1 by category id."""
        raise NotImplementedError
