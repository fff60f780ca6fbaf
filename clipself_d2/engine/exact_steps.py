"""Training steps that a resumed run takes as an uninterrupted one would."""

from contextlib import ExitStack
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from clipself_d2.clip.randomness import own_randomness
from clipself_d2.data.counted import CountedBatches
from clipself_d2.engine.accumulation import unwrap


class ExactSteps(HookBase):
    """Makes what an iteration draws a function of the seed, the iteration and the process.

    Models draw, as of proposals and in dropout, from the global generators, which no checkpoint
    keeps. The hook goes before all others, so that they, and evaluations among them, are outside.
    It also sets a loader of ``build_counted_loader`` to the first iteration, and keeps the running
    loss normaliser of Detectron2's one-stage detectors, which is none of their buffers.

    Args:
        seed: Seed of the run, >= 0.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = ExitStack()

    def before_train(self) -> None:
        """Set the loader to the first iteration."""
        loop = self._loop()
        loader = loop.data_loader
        batches = getattr(loader, "batch_sampler", None)
        if isinstance(batches, CountedBatches):
            batches.start_iter = self.trainer.start_iter
            # Whatever was read ahead belongs to other iterations.
            loop.reset_data_loader(lambda: loader)

    def before_step(self) -> None:
        """Give the iteration randomness of its own."""
        numbers = (self._seed, self.trainer.iter, comm.get_rank())
        self._step.enter_context(own_randomness(*numbers))

    def after_step(self) -> None:
        """Go back to the randomness of the run."""
        self._step.close()

    # Called also after an error in a step, which has not gone back.
    after_train = after_step

    def state_dict(self) -> dict[str, float]:
        """Collect the loss normalisers by module; a checkpoint leaves out what is empty."""
        modules = unwrap(self._loop().model).named_modules()
        found = ((name, getattr(module, "loss_normalizer", None)) for name, module in modules)
        return {name: float(value) for name, value in found if isinstance(value, int | float)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put the loss normalisers back."""
        for name, value in state.items():
            unwrap(self._loop().model).get_submodule(name).loss_normalizer = value

    def _loop(self) -> Any:
        # Detectron2's DefaultTrainer has the loop inside; that of a LazyConfig is one.
        return getattr(self.trainer, "_trainer", self.trainer)
