"""CLIP image towers: one contract for every family, and what they share."""
