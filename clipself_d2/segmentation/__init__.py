"""Open-vocabulary segmentation; importing the package registers the meta-architectures."""

from detectron2.modeling import META_ARCH_REGISTRY

from clipself_d2.segmentation.panoptic import OpenVocabPanoptic

META_ARCH_REGISTRY.register(OpenVocabPanoptic)

__all__ = ["OpenVocabPanoptic"]
