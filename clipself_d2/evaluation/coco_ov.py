"""Open-vocabulary COCO: average precision over base and over novel classes.

Legend: T IoU thresholds, P recall points, K classes, A area ranges, M detection limits.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from clipself_d2.evaluation.class_table import class_ap, class_scores, split_mean
from clipself_d2.evaluation.detection import DetectionEvaluator
from clipself_d2.evaluation.results import TaskResults, warn_undefined
from clipself_d2.parts.annotation_rules import COCO_SCORING
from clipself_d2.parts.words import shortened

logger = logging.getLogger(__name__)


class CocoOVEvaluator(DetectionEvaluator):
    """COCO scores, and AP and AP50 over the base, the novel and all classes.

    The metadata's ``novel_classes`` names the novel classes; all others are base. Without it, as
    in the transfer to another data set, there are no such splits. A split's AP50 is the mean over
    its classes of the class's AP50 at all areas. Classes without ground truth have no AP and are
    left out, as COCO's own AP leaves them out. Classes go by the names of the metadata, which
    need not be those of the annotation file.

    Results of every task: Detectron2's own (``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``
    and ``AP-<class>``), ``AP50-all`` and, where classes are novel, ``AP50-base``, ``AP50-novel``,
    ``AP-base`` and ``AP-novel``, in percent. NaN means that there is no ground truth to score
    against.

    Reference: Bansal et al., arXiv 1804.04340 (base and novel classes of COCO); Zareian et al.,
    OVR-CNN, arXiv 2011.10678 (all classes compete).
    """

    backends: ClassVar[tuple[str, ...]] = ("hotcoco", "faster_coco_eval", "pycocotools")
    purpose: ClassVar[str] = COCO_SCORING
    required_keys: ClassVar[Mapping[str, Sequence[str]]] = {}
    results_name: ClassVar[str] = "coco_instances_results.json"
    first_category_id: ClassVar[int] = 0
    usual_max_dets: ClassVar[int] = 100

    def protocol(self) -> dict[str, object]:
        """Say by which rules the scores are made, in what JSON can hold."""
        limit = self._max_dets_per_image[-1]
        return {"name": "COCO", "detections_per_image_and_class": limit, **super().protocol()}

    def _score(
        self, results: TaskResults, img_ids: Sequence[int] | None
    ) -> tuple[dict[str, float], dict[str, npt.NDArray[np.float64]]]:
        limit = self._max_dets_per_image[-1]
        if self._backend == "hotcoco":
            import hotcoco

            coco_gt, scorer = hotcoco.COCO(self._scored_file), hotcoco.COCOeval
        elif self._backend == "faster_coco_eval":
            import faster_coco_eval as faster

            coco_gt, scorer = faster.COCO(self._scored_file), faster.COCOeval_faster
        else:
            # COCOeval's own summary looks for 100 detections and reports -1 for other limits.
            coco_gt, scorer = self._scored_api, COCOeval if limit == 100 else COCOevalMaxDets
        with (
            results.file() as path,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            # Of its lines on recall, which are not reported here.
            warnings.filterwarnings("ignore", message="hotcoco: max_dets differ")
            found: Any = self._for_reference(results, path)
            coco_eval: Any = scorer(coco_gt, coco_gt.loadRes(found), results.task)
            # Ascending, or pycocotools sorts its limits and takes 10 for a smaller one.
            coco_eval.params.maxDets = [1, min(10, limit), limit]
            if img_ids is not None:
                coco_eval.params.imgIds = list(img_ids)
            coco_eval.evaluate()
            coco_eval.accumulate()
            # Fills ``stats``, which Detectron2 reads; what it prints is swallowed.
            coco_eval.summarize()
        scores = self._derive_coco_results(coco_eval, results.task, self._metadata.thing_classes)
        return scores, class_scores(coco_eval.eval["precision"], coco_eval.eval["recall"])

    def _derive_coco_results(
        self, coco_eval: COCOeval, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Add the scores of the splits, in percent, to Detectron2's.

        ``class_names`` of None leaves out the scores of single classes; the names themselves are
        taken in the scorer's order, which need not be that of ``thing_classes``.
        """
        # In the order of the category ids, as the K axis of the tables.
        names = [self._class_names[category_id] for category_id in coco_eval.params.catIds]
        results: dict[str, float] = super()._derive_coco_results(
            coco_eval, iou_type, class_names=names if class_names else None
        )
        novel_K = np.array([name in self._novel for name in names], dtype=bool)
        # Without novel classes there is nothing to tell apart.
        parts = {"base": ~novel_K, "novel": novel_K} if self._novel else {}
        splits = {**parts, "all": np.ones_like(novel_K)}
        precision_TPKAM = coco_eval.eval["precision"]
        ap_K, ap50_K = class_ap(precision_TPKAM), class_ap(precision_TPKAM[:1])
        scores = {f"AP50-{split}": 100 * split_mean(ap50_K, m) for split, m in splits.items()}
        scores |= {f"AP-{split}": 100 * split_mean(ap_K, m) for split, m in parts.items()}
        clashes = sorted(scores.keys() & results.keys())
        if clashes:
            logger.warning("%s is the split's score, not the class's", shortened(clashes))
        logger.info("Open-vocabulary %s scores:\n%s", iou_type, _split_table(splits, ap_K, ap50_K))
        warn_undefined(iou_type, scores)
        return results | scores


def _split_table(
    splits: Mapping[str, npt.NDArray[np.bool_]],
    ap_K: npt.NDArray[np.float64],
    ap50_K: npt.NDArray[np.float64],
) -> str:
    """Return a table of the splits' scores in percent."""
    rows: list[list[str | int | float]] = []
    for split, member_K in splits.items():
        num_scored = int((member_K & ~np.isnan(ap_K)).sum())
        scores = [100 * split_mean(score_K, member_K) for score_K in (ap_K, ap50_K)]
        shown = scores if num_scored else ["no ground truth"] * 2
        rows.append([split, num_scored, *shown])
    headers = ["split", "classes with ground truth", "AP", "AP50"]
    return str(tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f"))
