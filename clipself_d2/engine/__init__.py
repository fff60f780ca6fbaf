"""clipself_d2.engine."""
