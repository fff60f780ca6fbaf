"""Semantic and panoptic segmentation with words; importing the package registers both."""

from detectron2.modeling import META_ARCH_REGISTRY

from clipself_d2.segmentation.cat_seg import CATSegmentor, CatSegOptions
from clipself_d2.segmentation.cost_aggregator import AggregatorSizes, CostAggregator
from clipself_d2.segmentation.panoptic import OpenVocabPanoptic
from clipself_d2.segmentation.windows import WindowPlan
from clipself_d2.segmentation.words import LearnedWords

META_ARCH_REGISTRY.register(CATSegmentor)
META_ARCH_REGISTRY.register(OpenVocabPanoptic)
