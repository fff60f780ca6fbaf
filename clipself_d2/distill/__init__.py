"""Distillers: META_ARCHITECTUREs that return losses."""

from clipself_d2.distill.base import RegionDistiller
from clipself_d2.distill.clipself import CLIPSelfDistiller
from clipself_d2.distill.region_text import RegionTextDistiller
from clipself_d2.distill.regionclip import RegionCLIPPretrainer

__all__ = [
    "CLIPSelfDistiller",
    "RegionCLIPPretrainer",
    "RegionDistiller",
    "RegionTextDistiller",
]
