"""clipself_d2.clip."""
