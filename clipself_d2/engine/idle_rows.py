"""Rows of a fused matrix that get no gradient, and an optimiser that leaves them alone."""

import torch
from torch import Tensor, nn

from clipself_d2.clip import VisionTower


def keep_idle_rows(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Keep weight decay off the query and key rows of a last block in value mode.

    They share a matrix with the value, so they cannot be frozen, and their gradient is zero.

    Args:
        optimizer: Optimiser over the model's parameters.
        model: Holds any number of image towers.

    Returns:
        The same optimiser. After each of its steps the rows are what they were, unless a gradient
        reached them by another way, as by the embedding of a whole picture.
    """
    rows = [
        (parameter, count)
        for tower in model.modules()
        if isinstance(tower, VisionTower) and tower.last_block != "attention"
        for parameter, count in tower.idle_rows()
        if parameter.requires_grad
    ]
    kept: list[Tensor] = []

    def before_step(*_: object) -> None:
        kept[:] = [parameter[:count].detach().clone() for parameter, count in rows]

    @torch.no_grad()
    def after_step(*_: object) -> None:
        for (parameter, count), old in zip(rows, kept, strict=True):
            if parameter.grad is not None:
                # A choice on the device: asking for the gradient's value would wait for it.
                reached = parameter.grad[:count].any()
                parameter[:count] = torch.where(reached, parameter[:count], old)

    if rows:
        optimizer.register_step_pre_hook(before_step)
        optimizer.register_step_post_hook(after_step)
    return optimizer
