"""Distillers: META_ARCHITECTUREs that return losses."""

from clipself_d2.distillation.base import RegionDistiller
from clipself_d2.distillation.clipself import CLIPSelfDistiller
from clipself_d2.distillation.region_text import RegionTextDistiller
from clipself_d2.distillation.regionclip import RegionCLIPPretrainer

__all__ = [
    "CLIPSelfDistiller",
    "RegionCLIPPretrainer",
    "RegionDistiller",
    "RegionTextDistiller",
]
