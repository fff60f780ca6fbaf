"""Weights of two trainings, compared bit for bit."""

from pathlib import Path

import torch
from torch import Tensor


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a finished training.

    Args:
        folder: Its OUTPUT_DIR.

    Returns:
        Tensors by name.
    """
    content = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = content["model"]
    return weights


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """Compare two sets of weights bit for bit.

    Args:
        first: Tensors by name.
        second: Others.

    Returns:
        What differs; "" where nothing does.
    """
    if first.keys() != second.keys():
        return "other names"
    unequal = [key for key in first if not torch.equal(first[key], second[key])]
    if not unequal:
        return ""
    most = max(float((first[key].double() - second[key].double()).abs().max()) for key in unequal)
    return f"{len(unequal)} tensors differ, by {most:.1e} at most"
