"""clipself_d2.data.datasets."""
