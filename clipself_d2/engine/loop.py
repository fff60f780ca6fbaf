"""What Detectron2's training loops lack: processes on CPUs, bf16, and accumulation."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, defaults
from detectron2.utils import comm
from torch import Tensor, nn

from clipself_d2.clip.precision import has_bf16
from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.engine.accumulation import AccumulatingModel

logger = logging.getLogger(__name__)


def parallel_model(model: nn.Module, **options: object) -> nn.Module:
    """Wrap a model for several processes as Detectron2 does, on GPUs or on CPUs."""
    if all(parameter.device.type == "cpu" for parameter in model.parameters()):
        # Detectron2 names the process's GPU, which torch refuses for a model on the CPU.
        options["device_ids"] = None
    return create_ddp_model(model, **options)


@contextmanager
def cpu_processes() -> Iterator[None]:
    """Let ``DefaultTrainer.__init__`` wrap models on a CPU, for which it leaves no seam.

    A single process needs no wrapping and finds Detectron2 as it is.
    """
    if comm.get_world_size() == 1:
        yield
        return
    defaults.create_ddp_model = parallel_model
    try:
        yield
    finally:
        defaults.create_ddp_model = create_ddp_model


def amp_runs(device: str, enabled: bool) -> bool:
    """Tell whether mixed precision, which Detectron2 has for CUDA, can be had; if not, warn."""
    if enabled and not device.startswith("cuda"):
        logger.warning(
            "mixed precision of the training loop (AMP) is ignored on %s; a tower of precision "
            "bf16 is faster there",
            device,
        )
        return False
    return enabled


def amp_dtype(model: nn.Module, device: torch.device) -> torch.dtype:
    """Choose the number type of mixed precision: bfloat16 where a CLIP tower computes in it.

    Else float16, Detectron2's choice.
    """
    wanted = tower_precisions(model)
    # "auto" computes in bf16 wherever the hardware has it.
    is_bf16 = "bf16" in wanted or ("auto" in wanted and has_bf16(device))
    return torch.bfloat16 if is_bf16 else torch.float16


def tower_precisions(model: nn.Module) -> set[str]:
    """Collect the precisions of the CLIP towers in a model, such as "fp32" and "auto"."""
    # Student and teacher, or detector and proposer, may have one each.
    towers = (m for m in model.modules() if isinstance(m, VisionTower))
    return {tower.precision for tower in towers}


def adapt_loop(loop: SimpleTrainer, *, steps: int = 1) -> None:
    """Give Detectron2's loop, in place, the number type of the towers, and accumulation."""
    backward: Callable[[Tensor], None] = Tensor.backward
    precisions = tower_precisions(loop.model)
    if isinstance(loop, AMPTrainer):
        loop.precision = amp_dtype(loop.model, next(loop.model.parameters()).device)
        # bf16 has the exponents of fp32, so that gradients need no scaling.
        is_scaled = loop.precision == torch.float16
        loop.grad_scaler = scaler = torch.amp.GradScaler("cuda", enabled=is_scaled)
        logger.info(
            "mixed precision: %s %s loss scaling%s",
            str(loop.precision).removeprefix("torch."),
            "with" if is_scaled else "without",
            ", also in the CLIP tower of precision fp32" if "fp32" in precisions else "",
        )

        def backward(loss: Tensor) -> None:
            scaler.scale(loss).backward()

    elif "fp16" in precisions:
        logger.warning(
            "a tower of precision fp16 without mixed precision (AMP) trains without loss scaling; "
            "small gradients of the tower become zero"
        )
    if steps != 1:
        loop.model = AccumulatingModel(loop.model, steps=steps, backward=backward)
        # Else the loop would clear, before its own backward, what the parts have left.
        loop.zero_grad_before_forward = True
