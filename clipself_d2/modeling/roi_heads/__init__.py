"""clipself_d2.modeling.roi_heads."""
