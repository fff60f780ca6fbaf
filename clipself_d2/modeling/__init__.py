"""clipself_d2.modeling."""
