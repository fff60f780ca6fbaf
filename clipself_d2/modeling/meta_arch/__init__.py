"""Meta-architectures for MODEL.META_ARCHITECTURE; importing the package registers them."""

from detectron2.modeling import META_ARCH_REGISTRY

from clipself_d2.modeling.meta_arch.referring import CRIS

META_ARCH_REGISTRY.register(CRIS)

__all__ = ["CRIS"]
