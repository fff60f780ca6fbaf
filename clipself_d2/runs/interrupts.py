"""Ctrl-C and SIGTERM: a training finishes its step, saves, and says how to go on."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A second signal within so many seconds is the same one, told by a shell and by a launcher.
_PATIENCE = 3.0


class Interrupted(KeyboardInterrupt):
    """A run that a signal has ended."""

    def __init__(self, signum: int) -> None:
        super().__init__("before a training step was done; nothing was saved")
        self.signum = signum


@contextmanager
def raising_sigterm() -> Iterator[None]:
    """Let SIGTERM end a with block as Ctrl-C does, so that what is open gets closed."""

    def stop(signum: int, _: object) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopOnSignal(HookBase):
    """Ends a training between two steps, with a checkpoint from which it goes on bit for bit.

    Args:
        checkpointer: The training's; the main process saves.
        model: The model that the loop calls.
    """

    def __init__(self, checkpointer: Checkpointer, model: nn.Module) -> None:
        self._checkpointer, self._model = checkpointer, model
        self._stop: Interrupted | None = None
        self._busy, self._time = False, 0.0
        self._previous: dict[int, Any] = {}

    def before_train(self) -> None:
        """Listen to the signals; a run with no step left to do gets its final checkpoint."""
        self._done = self.trainer.start_iter - 1
        if 0 < self.trainer.start_iter == self.trainer.max_iter and comm.is_main_process():
            self._save_final()
        self._handle = self._model.register_forward_pre_hook(self._begin_step)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def _save_final(self) -> None:
        """Write what a run that was killed between its last two checkpoints had still to write."""
        folder = self._checkpointer.save_dir
        if folder and not (Path(folder) / "model_final.pth").is_file():
            self.trainer.iter = self._done
            self._checkpointer.save("model_final", iteration=self._done)
            self.trainer.iter = self.trainer.start_iter

    def _begin_step(self, module: nn.Module, _: object) -> None:
        self._busy = self._busy or module.training

    def before_step(self) -> None:
        """Let several processes agree at the end of the step; one may stop while it waits."""
        self._busy = comm.get_world_size() > 1

    def _receive(self, signum: int, _: object) -> None:
        if self._stop is not None:
            if time.monotonic() - self._time > _PATIENCE:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        # The first signal; what follows ends the process at once, but not within the patience.
        self._stop, self._time = Interrupted(signum), time.monotonic()
        # Workers of the loader may have got the signal too: their end is no error of this step.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self._busy:
            raise self._stop
        logger.warning("%s: this step is finished and saved", signal.Signals(signum).name)

    def after_step(self) -> None:
        """Raise ``Interrupted`` if any process got a signal during the step."""
        self._done, self._busy = self.trainer.iter, False
        signum = max(comm.all_gather(0 if self._stop is None else self._stop.signum))
        if signum:
            self._stop = self._stop or Interrupted(signum)
            raise self._stop

    def after_train(self) -> None:
        """Save what a stopped training has done, and listen no longer.

        It raises where the training was stopped when it was done, before its evaluation.
        """
        try:
            if self._stop is not None and not self._busy:
                self._stop.args = (self._save(),)
        finally:
            self._handle.remove()
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        if self._stop is not None and self._done + 1 >= self.trainer.max_iter:
            raise self._stop

    def _save(self) -> str:
        """Save the last step that was done; returns what to tell."""
        total = self.trainer.max_iter
        if self._done + 1 >= total:
            return "after the training, in its evaluation; score it with --eval-only --resume"
        if self._done < self.trainer.start_iter:
            return "before a step was done; nothing was saved, start again as before"
        self.trainer.iter = self._done
        if comm.is_main_process():
            self._checkpointer.save(f"model_{self._done:07d}", iteration=self._done)
        return (
            f"after iteration {self._done} of {total}, which is saved in "
            f"{self._checkpointer.save_dir}; go on with the same command and --resume"
        )
