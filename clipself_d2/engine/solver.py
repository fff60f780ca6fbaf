"""Optimisers from SOLVER, with learning rates by part of a model.

A block of a CLIP tower learns slower than the next by SOLVER.LAYER_DECAY, and pretrained towers
slower than what is new by SOLVER.BACKBONE_MULTIPLIER. A LazyConfig calls
``decayed_optimizer_params``.
"""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import Tensor, nn

from clipself_d2.clip import TextEncoder
from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.clip.towers.resnet import DenseAttentionPool

# What comes with weights of CLIP; the pool has a branch beside it that starts at zero, and learns
# at the pool's rate in the released code of CRIS.
_PRETRAINED = (VisionTower, DenseAttentionPool, TextEncoder)
# Position tables learn at the full rate, as in that code.
_FULL_RATE = "positional_embedding"
_OPTIMIZERS = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}


def layer_decay(model: nn.Module, rate: float) -> Callable[[str], float]:
    """Make the ``lr_factor_func`` of Detectron2's ``get_default_optimizer_params``.

    A parameter's factor is rate ** (num_blocks - i) in block i of a CLIP tower, one power more
    before the first block, 1 behind the last and outside of towers.

    Reference: BEiT, arXiv 2106.08254, as ViTDet uses it, arXiv 2203.16527, appendix A.2.
    """
    factors = {
        # Depth 0 is before the first block, num_blocks + 1 behind the last.
        f"{prefix}.{name}" if prefix else name: rate ** (module.num_blocks + 1 - depth)
        for prefix, module in model.named_modules()
        if isinstance(module, VisionTower)
        for name, depth in module.parameter_depths().items()
    }
    return lambda name: factors.get(name, 1.0)


def decayed_optimizer_params(
    model: nn.Module, *, base_lr: float, rate: float, weight_decay_norm: float | None = None
) -> list[dict]:
    """Parameter groups with layer-wise decay, for ``optimizer.params = L(...)`` in LazyConfig.

    Args:
        model: The detector, not wrapped.
        base_lr: Learning rate outside of towers.
        rate: As for ``layer_decay``.
        weight_decay_norm: Weight decay of norms; None takes the optimiser's.

    Returns:
        Groups with ``params`` and ``lr``.
    """
    return get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=layer_decay(model, rate),
    )


def slower_optimizer_params(
    model: nn.Module, *, base_lr: float, multiplier: float, weight_decay_norm: float | None = None
) -> list[dict]:
    """Parameter groups with slower towers, for ``optimizer.params = L(...)`` in LazyConfig.

    Args:
        model: The model, not wrapped.
        base_lr: Learning rate outside of towers.
        multiplier: Factor of it inside, as SOLVER.BACKBONE_MULTIPLIER.
        weight_decay_norm: Weight decay of norms; None takes the optimiser's.

    Returns:
        Groups with ``params`` and ``lr``.
    """
    slow = pretrained_parameters(model)
    return get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=lambda name: multiplier if name in slow else 1.0,
    )


def pretrained_parameters(model: nn.Module) -> set[str]:
    """Name the parameters of CLIP's towers, without position tables, for BACKBONE_MULTIPLIER."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, _PRETRAINED)
        for name, _ in module.named_parameters()
        if _FULL_RATE not in name
    }


def optimizer_params_from_cfg(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Detectron2's parameter groups with LAYER_DECAY and BACKBONE_MULTIPLIER.

    Reference: CRIS, arXiv 2111.15174, section 4.2, for the towers' lower rate. Differs from the
    released code, whose scheduler lets the towers learn at the full rate in the first epoch.
    """
    solver = cfg.SOLVER
    decay, slow = layer_decay(model, solver.LAYER_DECAY), pretrained_parameters(model)

    def factor(name: str) -> float:
        # Both hold: a block of a slow tower is slower still.
        return decay(name) * (solver.BACKBONE_MULTIPLIER if name in slow else 1.0)

    return get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor,
    )


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that first clips the L2 norm of all gradients together to ``max_norm``.

    Detectron2's own clipping is of each parameter by itself.
    """

    def __init__(self, params: list[dict], *, max_norm: float, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.max_norm = max_norm

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip, then update; Detectron2's loops give no closure."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_norm)
        super().step(closure)


def build_optimizer(cfg: CfgNode, groups: list[dict]) -> torch.optim.Optimizer:
    """Make SOLVER.OPTIMIZER over parameter groups, with the clipping that the config asks for.

    With AdamW, CLIP_TYPE may also be full_model, the norm of all gradients together.
    """
    solver, clipping = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    if not groups:
        raise ValueError(
            "nothing of the model is trained; set MODEL.CLIP.TRAINABLE_BLOCKS, or "
            "TEXT_TRAINABLE_BLOCKS for a CRIS"
        )
    options: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "SGD":
        options |= {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    else:
        options |= {"betas": tuple(solver.ADAM_BETAS), "eps": solver.ADAM_EPS}
        # A fused step takes gradients that are still scaled, which clipping must not see.
        if not clipping.ENABLED:
            options |= fused_options([p for group in groups for p in group["params"]])
    kind = _OPTIMIZERS[solver.OPTIMIZER]
    if not (clipping.ENABLED and clipping.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, kind)(groups, **options)
    if kind is not torch.optim.AdamW:
        raise ValueError(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model goes with SOLVER.OPTIMIZER AdamW; "
            f"use value or norm with {solver.OPTIMIZER}"
        )
    return ClippedAdamW(groups, max_norm=clipping.CLIP_VALUE, **options)


def fused_options(parameters: list[nn.Parameter]) -> dict[str, bool]:
    """Choose the one-kernel form of Adam and AdamW on a GPU; on a CPU it rounds otherwise."""
    return {"fused": True} if all(parameter.is_cuda for parameter in parameters) else {}


def keep_idle_rows(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """Keep weight decay off rows of a matrix that are not trained, while others are.

    Query and key that the dense form of the last block does not use may share a matrix with the
    value, so that they cannot be frozen, and their gradient is zero. A model may name more in
    ``held_rows``. After each step of the returned, same optimiser the rows are what they were,
    unless a gradient reached them by another way, as by the embedding of a whole picture.
    """
    rows: list[tuple[nn.Parameter, slice]] = []
    for module in model.modules():
        if isinstance(module, VisionTower):
            rows += [row for row in module.idle_rows() if row[0].requires_grad]
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
