"""clipself_d2.distill."""
