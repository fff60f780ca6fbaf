"""clipself_d2.vocabulary."""
