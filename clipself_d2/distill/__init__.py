"""Distillers: META_ARCHITECTUREs that return losses."""

from clipself_d2.distill.clipself import CLIPSelfDistiller

__all__ = ["CLIPSelfDistiller"]
