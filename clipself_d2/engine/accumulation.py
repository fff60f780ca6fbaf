"""Gradient accumulation behind the interface of a model, for Detectron2's training loops."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, object]]


class AccumulatingModel(nn.Module):
    """Works through a batch in parts; gradients of all but the last are computed in the forward.

    The loop that calls it must clear gradients before the forward. Each part's losses are weighted
    by ``loss_weight`` of the model, where it has that, else by the number of items, so that the
    sum over the parts is the loss of the whole batch. A model whose losses compare the items of a
    batch with one another has ``prepare_parts`` instead: from the parts to parts that know of each
    other, whose losses add up as they are.

    The gradients are those of the whole batch as far as each item is computed by itself. They are
    not where batch norms take their statistics of a part, and where smaller pictures of a batch see
    the padding up to the largest of their part.

    Args:
        model: A model, perhaps wrapped in DistributedDataParallel, that returns losses in training.
        steps: Number of parts.
        backward: How a loss is differentiated, such as through a gradient scaler.
    """

    def __init__(self, model: nn.Module, *, steps: int, backward: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.module = model
        self.steps = steps
        self._backward = backward
        self._warned = False

    def forward(self, batched_inputs: Items) -> Any:
        """Run the model, in training part by part.

        In training the losses are those of the whole batch, with the gradient of the last part; a
        ValueError says that the batch has fewer items than there are parts.
        """
        if not self.training or self.steps == 1:
            return self.module(batched_inputs)
        self._warn_of_batch_norms()
        parts, weights = self._weigh(self._split(batched_inputs))
        total: dict[str, Tensor] = {}
        # Of DistributedDataParallel; a model of one process has nothing to keep apart.
        no_sync = getattr(self.module, "no_sync", nullcontext)
        for part, weight in zip(parts[:-1], weights[:-1], strict=True):
            with no_sync():
                losses = {name: weight * loss for name, loss in self.module(part).items()}
                self._backward(cast(Tensor, sum(losses.values())))
            if not total:
                self._own_gradients()
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.detach()
        # The loop itself runs the last backward, in which DistributedDataParallel joins gradients.
        last = self.module(parts[-1])
        return {name: weights[-1] * loss + total.get(name, 0.0) for name, loss in last.items()}

    def _own_gradients(self) -> None:
        """Copy the first part's gradients; those of later parts are added to the copies.

        A backward pass that a GPU recorded (MODEL.CLIP.COMPILE step) gives its results in memory
        that it writes over the next time it is played.
        """
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def _split(self, items: Items) -> list[Items]:
        if len(items) < self.steps:
            raise ValueError(
                f"a process has {len(items)} images of SOLVER.IMS_PER_BATCH, too few for "
                f"SOLVER.ACCUMULATION_STEPS {self.steps}"
            )
        # Sizes differ by one at most.
        ends = [len(items) * number // self.steps for number in range(self.steps + 1)]
        return [items[begin:end] for begin, end in pairwise(ends)]

    def _weigh(self, parts: list[Items]) -> tuple[list[Items], list[float]]:
        inner: Any = unwrap(self.module)
        if hasattr(inner, "prepare_parts"):
            return inner.prepare_parts(parts), [1.0] * len(parts)
        weights = [float(getattr(inner, "loss_weight", len)(part)) for part in parts]
        return parts, [weight / sum(weights) for weight in weights]

    def _warn_of_batch_norms(self) -> None:
        if not self._warned and any(
            isinstance(module, _BatchNorm) and module.training for module in self.modules()
        ):
            logger.warning(
                "batch norms see one part of a batch at a time: SOLVER.ACCUMULATION_STEPS %d does "
                "not give the gradients of the whole batch; GN or frozen norms do",
                self.steps,
            )
        self._warned = True


def unwrap(model: nn.Module) -> Any:
    """Take off what the training loop put around a model."""
    while isinstance(model, AccumulatingModel | DistributedDataParallel):
        model = model.module
    return model
