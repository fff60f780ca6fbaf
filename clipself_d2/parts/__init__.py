"""Parts that several methods build from a config; the only readers of the keys they name."""
