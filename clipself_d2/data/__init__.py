"""Data sets, mappers and loaders; importing this package registers the data sets."""

from clipself_d2.data import datasets

__all__ = ["datasets"]
