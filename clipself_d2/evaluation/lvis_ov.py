"""Open-vocabulary LVIS: average precision by class frequency, the rare classes being novel."""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import hotcoco
import numpy as np
import pycocotools.mask as mask_util
from detectron2.utils.logger import create_small_table

from clipself_d2.evaluation.detection import DetectionEvaluator, warn_undefined

logger = logging.getLogger(__name__)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
MAX_DETS_PER_IMAGE = 300


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

    An LVIS file is a COCO file with three more keys, so this stands on Detectron2's COCO
    evaluator. Detectron2's LVIS evaluator has no seam for the scorer, and cannot run where numpy
    is newer than 1.23.

    Reference: Gupta et al., LVIS, arXiv 1908.03195 (federated evaluation); Gu et al., ViLD,
    arXiv 2104.13921 (rare classes as novel).
    """

    backends: ClassVar[tuple[str, ...]] = ("hotcoco", "lvis")
    required_keys: ClassVar[Mapping[str, Sequence[str]]] = {
        "images": ("id", "neg_category_ids", "not_exhaustive_category_ids"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area"),
        "categories": ("id", "name", "frequency"),
    }
    results_name: ClassVar[str] = "lvis_instances_results.json"
    first_category_id: ClassVar[int] = 1

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
            dataset_name: Registered name; the metadata needs ``json_file`` and ``thing_classes``.
            tasks: Any of ``bbox`` and ``segm``; None scores what the model predicts.
            distributed: Whether to gather the predictions of all processes.
            output_dir: Folder for the predictions; None writes none.
            backend: ``hotcoco`` (fast) or ``lvis`` (the reference); the same numbers.
            max_dets_per_image: Most detections of an image that count; None is LVIS's 300.

        Raises:
            FileNotFoundError: If the annotation file does not exist.
            ValueError: As ``DetectionEvaluator``.
        """
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            backend=backend,
            max_dets_per_image=max_dets_per_image or MAX_DETS_PER_IMAGE,
        )

    def _check_annotations(
        self, content: Mapping[str, Sequence[Mapping[str, object]]], path: str
    ) -> None:
        if any(entry.get("iscrowd") or entry.get("ignore") for entry in content["annotations"]):
            raise ValueError(
                f"annotation file {path} has annotations with iscrowd or ignore, which LVIS does "
                "not know and the scorers take differently; drop them"
            )
        strangers = {str(entry["frequency"]) for entry in content["categories"]} - set("rcf")
        if strangers:
            raise ValueError(
                f"annotation file {path} has categories of frequency "
                f"{', '.join(sorted(strangers))}, expected r, c or f"
            )

    def _score(
        self,
        results: list[dict[str, Any]],
        task: str,
        img_ids: Sequence[int] | None,
    ) -> dict[str, float]:
        max_dets = self._max_dets_per_image[-1]
        # lvis cannot load an empty list; where nothing matches, the scorers agree.
        if self._backend == "hotcoco" or not results:
            truth = _truth_for_hotcoco(self._json_file, self._coco_api.dataset)
            raw = _score_hotcoco(truth, results, task, img_ids, max_dets)
        else:
            raw = _score_lvis(self._json_file, results, task, img_ids, max_dets)
        scores = {
            metric: 100 * float(raw[metric]) if raw[metric] >= 0 else float("nan")
            for metric in METRICS
        }
        logger.info(
            "LVIS %s scores, %d detections an image:\n%s",
            task,
            max_dets,
            create_small_table(scores),
        )
        warn_undefined(task, scores)
        return scores


def _truth_for_hotcoco(
    json_file: str, content: Mapping[str, Sequence[Mapping[str, Any]]]
) -> hotcoco.COCO:
    """Load annotations as lvis sees them: it leaves out objects without area, of either side."""
    kept = [entry for entry in content["annotations"] if entry["area"] > 0]
    if len(kept) == len(content["annotations"]):
        return hotcoco.LVIS(json_file)
    return hotcoco.LVIS({**content, "annotations": kept})


def _has_area(result: Mapping[str, Any]) -> bool:
    if "segmentation" in result:
        return bool(mask_util.area(result["segmentation"]) > 0)
    _, _, width, height = result["bbox"]
    return bool(width * height > 0)


def _score_hotcoco(
    lvis_gt: hotcoco.COCO,
    results: list[dict[str, Any]],
    task: str,
    img_ids: Sequence[int] | None,
    max_dets: int,
) -> Mapping[str, float]:
    """Return scores in 0 to 1 by metric, -1 where undefined."""
    # lvis leaves results without area out only after it has cut every image to max_dets, so they
    # keep their place under the id of no category.
    nowhere = max(lvis_gt.get_cat_ids()) + 1
    results = [r if _has_area(r) else {**r, "category_id": nowhere} for r in results]
    lvis_eval = hotcoco.LVISEval(lvis_gt, hotcoco.LVISResults(lvis_gt, results, max_dets), task)
    if img_ids is not None:
        lvis_eval.params.img_ids = list(img_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        lvis_eval.run()
    scores: Mapping[str, float] = lvis_eval.get_results()
    return scores


def _score_lvis(
    json_file: str,
    results: list[dict[str, Any]],
    task: str,
    img_ids: Sequence[int] | None,
    max_dets: int,
) -> Mapping[str, float]:
    """Return scores in 0 to 1 by metric, -1 where undefined."""
    try:
        from lvis import LVIS, LVISEval, LVISResults
    except ImportError as error:
        raise ValueError(
            "backend is lvis, which is not installed; pip install lvis, or set TEST.BACKEND to "
            "hotcoco"
        ) from error
    lvis_gt = LVIS(json_file)
    lvis_eval = LVISEval(lvis_gt, LVISResults(lvis_gt, results, max_dets), task)
    if img_ids is not None:
        lvis_eval.params.img_ids = list(img_ids)
    with numpy_float_alias():
        lvis_eval.run()
    scores: Mapping[str, float] = lvis_eval.get_results()
    return scores
