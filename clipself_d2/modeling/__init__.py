"""Parts of detectors for Detectron2; importing it registers them."""

from clipself_d2.modeling import backbone, meta_arch, roi_heads, rpn

__all__ = ["backbone", "meta_arch", "roi_heads", "rpn"]
