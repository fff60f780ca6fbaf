"""Rows of a fused matrix that get no gradient, and an optimiser that leaves them alone."""

import torch
from torch import Tensor, nn

from clipself_d2.clip import VisionTower


def keep_idle_rows(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Keep weight decay off rows of a matrix that are not trained, while others are.

    Query and key that the dense form of the last block does not use may share a matrix with the
    value, so that they cannot be frozen, and their gradient is zero. A model may name more in
    ``held_rows``. After each step of the returned, same optimiser the rows are what they were,
    unless a gradient reached them by another way, as by the embedding of a whole picture.
    """
    rows: list[tuple[nn.Parameter, slice]] = [
        row
        for tower in model.modules()
        if isinstance(tower, VisionTower)
        for row in tower.idle_rows()
        if row[0].requires_grad
    ]
    for module in model.modules():
        rows += getattr(module, "held_rows", ())
    kept: list[Tensor] = []

    def before_step(*_: object) -> None:
        kept[:] = [parameter[held].detach().clone() for parameter, held in rows]

    @torch.no_grad()
    def after_step(*_: object) -> None:
        for (parameter, held), old in zip(rows, kept, strict=True):
            if parameter.grad is not None:
                # A choice on the device: asking for the gradient's value would wait for it.
                reached = parameter.grad[held].any()
                parameter[held] = torch.where(reached, parameter[held], old)

    if rows:
        optimizer.register_step_pre_hook(before_step)
        optimizer.register_step_post_hook(after_step)
    return optimizer
