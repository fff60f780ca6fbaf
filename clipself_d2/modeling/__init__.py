"""Parts of detectors for Detectron2; importing it registers them."""

from clipself_d2.modeling import backbone, roi_heads

__all__ = ["backbone", "roi_heads"]
