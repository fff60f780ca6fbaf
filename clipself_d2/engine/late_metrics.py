"""Losses that wait on the device until Detectron2 writes them."""

import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from torch import Tensor


class LateMetrics(HookBase):
    """Keeps the losses of a loop on a GPU until the iteration in which they are written.

    Detectron2 reads every loss in every iteration, and the processor, which could prepare the next
    one, waits until the GPU has caught up. Read together, all are logged under the iterations that
    they are of, so that the files are the same; a loss that is not finite stops the run when it is
    read. The hook goes before the writers.

    Args:
        loop: Detectron2's loop.
        period: Iterations between two writes.
    """

    def __init__(self, loop: SimpleTrainer, *, period: int) -> None:
        self._loop, self._period = loop, period
        self._waiting: list[tuple[dict[str, Tensor], float, int, str]] = []
        # The method that the loop calls in each step.
        loop._write_metrics = self._keep  # type: ignore[method-assign]

    def _keep(
        self,
        loss_dict: dict[str, Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        number = self._loop.iter if iter is None else iter
        losses = {name: loss.detach() for name, loss in loss_dict.items()}
        self._waiting.append((losses, data_time, number, prefix))

    def after_step(self) -> None:
        """Log what has waited, where the writers write."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done >= self.trainer.max_iter:
            self.flush()

    def after_train(self) -> None:
        """Log what a run that was stopped had yet to log, as Detectron2's writers then do.

        Several processes gather their losses, for which one that has failed must not wait.
        """
        if comm.get_world_size() == 1:
            self.flush()

    def flush(self) -> None:
        """Log what has waited, in the order of the iterations."""
        waiting, self._waiting = self._waiting, []
        # Of mixed precision the number types differ, which do not stack.
        flat = [loss.float() for losses, *_ in waiting for loss in losses.values()]
        # One copy for all: each would wait for the device.
        read = iter(torch.stack(flat).cpu() if flat else ())
        for losses, *rest in waiting:
            SimpleTrainer.write_metrics({name: next(read) for name in losses}, *rest)


def late_metrics(loop: SimpleTrainer, device: str, period: int) -> list[HookBase]:
    """Make the hook of a loop on a GPU; on a CPU there is nothing to wait for, and none."""
    return [LateMetrics(loop, period=period)] if device.startswith("cuda") else []
