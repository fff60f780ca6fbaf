"""clipself_d2.layers."""
