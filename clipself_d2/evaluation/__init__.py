"""clipself_d2.evaluation."""
