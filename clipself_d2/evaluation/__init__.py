"""Evaluators: open-vocabulary COCO and LVIS, zero-shot region classification."""

from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.lvis_ov import LVISOVEvaluator
from clipself_d2.evaluation.referring import ReferringEvaluator
from clipself_d2.evaluation.region_classification import RegionClassificationEvaluator

__all__ = [
    "CocoOVEvaluator",
    "LVISOVEvaluator",
    "ReferringEvaluator",
    "RegionClassificationEvaluator",
    "build_evaluator",
]
