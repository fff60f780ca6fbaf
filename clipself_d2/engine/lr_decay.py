"""Layer-wise decay of the learning rate for CLIP towers.

With SOLVER.LAYER_DECAY in yaml, or ``lr_factor_func`` of Detectron2's
``get_default_optimizer_params`` in LazyConfig.
"""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from clipself_d2.clip.towers.contract import VisionTower


def learning_rate_factors(model: nn.Module, rate: float) -> dict[str, float]:
    """Factor of the learning rate of every parameter of the towers in a model.

    Args:
        model: A detector with CLIP towers somewhere in it.
        rate: Factor from one block to the one before, above 0, at most 1.

    Returns:
        By name as in ``model.named_parameters``: rate ** (num_blocks - i) in block i, one power
        more before the first block, 1 behind the last. Parameters outside of towers are not named.

    Raises:
        ValueError: If the rate is out of range.

    Reference: BEiT, arXiv 2106.08254, as ViTDet uses it, arXiv 2203.16527, appendix A.2.
    """
    if not 0 < rate <= 1:
        raise ValueError(
            f"layer decay is {rate}; SOLVER.LAYER_DECAY is a factor above 0, at most 1 (no decay)"
        )
    factors = {}
    for prefix, module in model.named_modules():
        if isinstance(module, VisionTower):
            for name, depth in module.parameter_depths().items():
                whole = f"{prefix}.{name}" if prefix else name
                factors[whole] = rate ** (module.num_blocks + 1 - depth)
    return factors


def layer_decay(model: nn.Module, rate: float) -> Callable[[str], float]:
    """Make the ``lr_factor_func`` of Detectron2's ``get_default_optimizer_params``.

    Args:
        model: The detector, not wrapped.
        rate: As for ``learning_rate_factors``.

    Returns:
        Function from a parameter's name to its factor; 1 outside of towers.

    Raises:
        ValueError: If the rate is out of range.
    """
    factors = learning_rate_factors(model, rate)
    return lambda name: factors.get(name, 1.0)


def decayed_optimizer_params(
    model: nn.Module, *, base_lr: float, rate: float, weight_decay_norm: float | None = None
) -> list[dict]:
    """Parameter groups with layer-wise decay, for ``optimizer.params = L(...)`` in LazyConfig.

    Args:
        model: The detector, not wrapped.
        base_lr: Learning rate outside of towers.
        rate: As for ``learning_rate_factors``.
        weight_decay_norm: Weight decay of norms; None takes the optimiser's.

    Returns:
        Groups with ``params`` and ``lr``.

    Raises:
        ValueError: If the rate is out of range.
    """
    groups: list[dict] = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        lr_factor_func=layer_decay(model, rate),
    )
    return groups


def optimizer_params_from_cfg(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Detectron2's parameter groups with SOLVER.LAYER_DECAY.

    Args:
        cfg: Config with SOLVER.
        model: The model, not wrapped.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``.

    Raises:
        ValueError: If SOLVER.LAYER_DECAY is out of range.
    """
    groups: list[dict] = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=layer_decay(model, cfg.SOLVER.LAYER_DECAY),
    )
    return groups


def build_sgd(cfg: CfgNode, groups: list[dict]) -> torch.optim.Optimizer:
    """Make Detectron2's SGD over groups of parameters.

    Args:
        cfg: Config with SOLVER.BASE_LR, MOMENTUM, NESTEROV, WEIGHT_DECAY and CLIP_GRADIENTS.
        groups: As of ``optimizer_params_from_cfg``.

    Returns:
        The optimiser, with gradient clipping where the config asks for it.
    """
    optimizer: torch.optim.Optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
        groups,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    return optimizer
