"""Learning rates by part of a model: pretrained towers slower than what is new."""

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

# Top-level modules that come with weights of CLIP.
PRETRAINED_PARTS = ("backbone.", "text.")
# Position tables learn at the full rate, as in the released code of CRIS.
FULL_RATE_PARTS = ("positional_embedding",)


def is_pretrained(name: str) -> bool:
    """Tell whether a parameter learns at the lower rate.

    Args:
        name: As in ``named_parameters`` of the model.

    Returns:
        Whether it is of a tower, and no position table.
    """
    return name.startswith(PRETRAINED_PARTS) and not any(part in name for part in FULL_RATE_PARTS)


def rate_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, object]]:
    """Split the trainable parameters by learning rate.

    Args:
        cfg: Config with SOLVER.BASE_LR, BACKBONE_MULTIPLIER and WEIGHT_DECAY.
        model: The model, not wrapped.

    Returns:
        Up to two groups with ``params``, ``lr`` and ``weight_decay``: pretrained towers at BASE_LR
        x BACKBONE_MULTIPLIER, all else at BASE_LR.

    Raises:
        ValueError: If nothing is trained.

    Reference: CRIS, arXiv 2111.15174, section 4.2. Differs from the released code, whose scheduler
    lets the towers learn at the full rate in the first epoch.
    """
    slow: list[nn.Parameter] = []
    full: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (slow if is_pretrained(name) else full).append(parameter)
    if not slow and not full:
        raise ValueError("nothing of the model is trained; set MODEL.CLIP.TRAINABLE_BLOCKS")
    rate, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY
    groups = [
        {"params": full, "lr": rate, "weight_decay": decay},
        {"params": slow, "lr": rate * cfg.SOLVER.BACKBONE_MULTIPLIER, "weight_decay": decay},
    ]
    return [group for group in groups if group["params"]]


def build_adam(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Make Adam over the groups of ``rate_groups``.

    Args:
        cfg: Config with the SOLVER keys.
        model: The model, not wrapped.

    Returns:
        The optimiser, with gradient clipping where the config asks for it.

    Raises:
        ValueError: If nothing is trained, or clipping is that of the full model.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == "full_model":
        raise ValueError(
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model goes with SOLVER.OPTIMIZER AdamW; use "
            "value or norm with Adam"
        )
    optimizer: torch.optim.Optimizer = maybe_add_gradient_clipping(cfg, torch.optim.Adam)(
        rate_groups(cfg, model),
        lr=cfg.SOLVER.BASE_LR,
        betas=tuple(cfg.SOLVER.ADAM_BETAS),
        eps=cfg.SOLVER.ADAM_EPS,
    )
    return optimizer
