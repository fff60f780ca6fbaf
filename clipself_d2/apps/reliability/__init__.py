"""Faults on purpose: kills, bad inputs, attacks."""
