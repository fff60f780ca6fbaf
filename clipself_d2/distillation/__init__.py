"""Distillers: META_ARCHITECTUREs that return losses; importing the package registers them."""

from detectron2.modeling import META_ARCH_REGISTRY

from clipself_d2.distillation.base import RegionDistiller, Towers
from clipself_d2.distillation.clipself import CLIPSelfDistiller
from clipself_d2.distillation.region_text import RegionTextDistiller
from clipself_d2.distillation.regionclip import RegionCLIPPretrainer
from clipself_d2.distillation.term_distiller import TermDistiller

for _distiller in (CLIPSelfDistiller, RegionCLIPPretrainer, RegionTextDistiller, TermDistiller):
    META_ARCH_REGISTRY.register(_distiller)
