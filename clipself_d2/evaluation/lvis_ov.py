"""Open-vocabulary LVIS: average precision by class frequency, the rare classes being novel."""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
from detectron2.utils.logger import create_small_table

from clipself_d2.evaluation.class_table import class_scores
from clipself_d2.evaluation.detection import DetectionEvaluator
from clipself_d2.evaluation.results import Result, TaskResults, best_of_each_class, warn_undefined
from clipself_d2.parts.annotation_rules import LVIS_LISTS, LVIS_SCORING

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
# Of Fixed AP, over all images.
FIXED_DETS_PER_CLASS = 10_000


@contextlib.contextmanager
def numpy_float_alias() -> Iterator[None]:
    """Give numpy back ``np.float`` inside a with block.

    lvis 0.5.3 reads this alias, which numpy removed in 1.24. It means Python's float.
    """
    if "float" in vars(np):
        yield
        return
    np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]


class LVISOVEvaluator(DetectionEvaluator):
    """LVIS scores of boxes and masks: AP, AP50, AP75, by size, and by class frequency.

    APr, APc and APf are over rare, common and frequent classes. In the open-vocabulary setting
    the rare classes are the novel ones. Percent; NaN means that there is no ground truth to score
    against (Detectron2's own LVIS evaluator says -100 there). Objects and results without area do
    not exist for lvis, and therefore for either backend.

    With ``fixed_ap``, the same metrics followed by ``Fixed``: no image has a limit, but of every
    class the 10,000 detections of highest score over all images count, so that one class's
    detections do not push out those of another. The model must not limit an image either.

    An LVIS file is a COCO file with three more keys, so this stands on Detectron2's COCO
    evaluator. Detectron2's LVIS evaluator has no seam for the scorer, and cannot run where numpy
    is newer than 1.23.

    Reference: Gupta et al., LVIS, arXiv 1908.03195 (federated evaluation); Gu et al., ViLD,
    arXiv 2104.13921 (rare classes as novel); Dave et al., arXiv 2102.01066 (Fixed AP).
    """

    backends: ClassVar[tuple[str, ...]] = ("hotcoco", "lvis")
    purpose: ClassVar[str] = LVIS_SCORING
    required_keys: ClassVar[Mapping[str, Sequence[str]]] = {
        "images": LVIS_LISTS,
        "categories": ("frequency",),
    }
    results_name: ClassVar[str] = "lvis_instances_results.json"
    first_category_id: ClassVar[int] = 1
    usual_max_dets: ClassVar[int] = 300

    def __init__(self, *arguments: Any, fixed_ap: bool = False, **options: Any) -> None:
        """Read the annotations; arguments are those of ``DetectionEvaluator``.

        Without ``novel_classes`` the rare classes are the novel ones; ``fixed_ap`` adds Fixed AP. A
        ValueError says that annotations or frequencies are not LVIS's.
        """
        super().__init__(*arguments, **options)
        self._fixed_ap = fixed_ap
        frequency = {i: str(self._coco_api.cats[i]["frequency"]) for i in self._category_ids}
        _check_annotations(self._json_file, self._coco_api.anns.values(), frequency.values())
        rare = (self._class_names[i] for i, kind in frequency.items() if kind == "r")
        self._novel = self._novel or frozenset(rare)

    def protocol(self) -> dict[str, object]:
        """Say by which rules the scores are made, in what JSON can hold."""
        rules = {"name": "LVIS", "detections_per_image": self._max_dets_per_image[-1]}
        if self._fixed_ap:
            rules["fixed_ap_detections_per_class"] = FIXED_DETS_PER_CLASS
        return {**rules, **super().protocol()}

    def _score(
        self, results: TaskResults, img_ids: Sequence[int] | None
    ) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
        task, survey, limit = results.task, results.survey, self._max_dets_per_image[-1]
        scores, by_class = self._run_scorer(results, img_ids, limit)
        title = f"LVIS {task} scores, {limit} detections an image"
        logger.info("%s:\n%s", title, create_small_table(scores))
        warn_undefined(task, scores)
        if self._fixed_ap:
            chosen_N = best_of_each_class(
                np.asarray(survey.category_ids), np.asarray(survey.scores), FIXED_DETS_PER_CLASS
            )
            # lvis takes a negative limit for none.
            fixed, fixed_by_class = self._run_scorer(results, img_ids, -1, chosen_N)
            title = f"Fixed AP of {task}, {FIXED_DETS_PER_CLASS} detections a class"
            logger.info("%s:\n%s", title, create_small_table(fixed))
            scores |= {f"{metric}Fixed": score for metric, score in fixed.items()}
            by_class |= {"APFixed": fixed_by_class["AP"]}
        return scores, by_class

    def _run_scorer(
        self,
        results: TaskResults,
        img_ids: Sequence[int] | None,
        max_dets: int,
        chosen_N: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
        """Return percent by metric, and the score of every class in 0 to 1 by category id."""
        is_hotcoco = self._backend == "hotcoco"
        change = partial(_set_apart, no_category=max(self._category_ids) + 1)
        with results.file(chosen_N=chosen_N, change=change if is_hotcoco else None) as path:
            if is_hotcoco:
                import hotcoco

                truth = _truth_for_hotcoco(self._scored_file, self._scored_api.dataset)
                found = hotcoco.LVISResults(truth, path, max_dets)
                lvis_eval: Any = hotcoco.LVISEval(truth, found, results.task)
            else:
                lvis_eval = _lvis_scorer(
                    self._scored_file, self._for_reference(results, path), results.task, max_dets
                )
        if img_ids is not None:
            lvis_eval.params.img_ids = list(img_ids)
        with contextlib.redirect_stdout(io.StringIO()), numpy_float_alias():
            lvis_eval.run()
        raw = lvis_eval.get_results()
        scores = {
            # lvis says -1 where there is no ground truth.
            metric: 100 * float(raw[metric]) if raw[metric] >= 0 else float("nan")
            for metric in METRICS
        }
        # lvis has one limit only and no axis for it.
        precision, recall = (np.asarray(lvis_eval.eval[key]) for key in ("precision", "recall"))
        if precision.ndim == 4:
            precision, recall = precision[..., None], recall[..., None]
        return scores, class_scores(precision, recall)


def _check_annotations(
    json_file: str, annotations: Iterable[Mapping[str, Any]], frequencies: Iterable[str]
) -> None:
    if any(entry.get("iscrowd") or entry.get("ignore") for entry in annotations):
        raise ValueError(
            f"annotation file {json_file} has annotations with iscrowd or ignore, which LVIS does "
            "not know and the scorers take differently; drop them"
        )
    strangers = set(frequencies) - set("rcf")
    if strangers:
        raise ValueError(
            f"annotation file {json_file} has categories of frequency "
            f"{', '.join(sorted(strangers))}, expected r, c or f"
        )


def _truth_for_hotcoco(json_file: str, content: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Load annotations as lvis sees them: it leaves out objects without area, of either side."""
    import hotcoco

    kept = [entry for entry in content["annotations"] if entry["area"] > 0]
    if len(kept) == len(content["annotations"]):
        return hotcoco.LVIS(json_file)
    return hotcoco.LVIS({**content, "annotations": kept})


def _set_apart(result: Result, no_category: int) -> Result:
    """Give a result without area the id of no category.

    lvis leaves such results out only after it has cut every image to its limit, so that they must
    keep their place.
    """
    if "segmentation" in result:
        has_area = mask_util.area(result["segmentation"]) > 0
    else:
        _, _, width, height = result["bbox"]
        has_area = width * height > 0
    return result if has_area else {**result, "category_id": no_category}


def _lvis_scorer(json_file: str, found: Any, task: str, max_dets: int) -> Any:
    """Return the reference's scorer, not run yet."""
    try:
        from lvis import LVIS, LVISEval, LVISResults
    except ImportError as error:
        raise ValueError(
            "backend is lvis, which is not installed; pip install lvis, or set TEST.BACKEND to "
            "hotcoco"
        ) from error
    lvis_gt = LVIS(json_file)
    return LVISEval(lvis_gt, LVISResults(lvis_gt, found, max_dets), task)
