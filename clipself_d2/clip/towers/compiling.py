"""Blocks that torch.compile makes one graph of, and one sentence where it cannot."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

COMPILE_MODES = ("off", "blocks", "step")
# Graphs of one form that may differ in shapes, number type and in what is trained; torch's own 8
# are few where every block has another rate of stochastic depth.
_many_graphs = torch._dynamo.config.patch(recompile_limit=64)


class Compiler:
    """Runs functions compiled, or as they are after torch.compile has failed once.

    Graphs belong to the functions, so that all blocks of a form, in all towers, share one.

    Args:
        backend: Backend of torch.compile.

    Attributes:
        failed: Whether it has given up, which a warning has said.
    """

    def __init__(self, backend: str | Callable[..., Any] = "inductor") -> None:
        self.backend = backend
        self.failed = False

    def run(self, function: Callable[..., Result], *args: Any, replay: bool = False) -> Result:
        """Call a function that outlives the call, not a closure.

        ``replay`` lets a GPU's launches be recorded, and played again as one.
        """
        if not self.failed:
            try:
                with _many_graphs:
                    result: Result = _compiled(function, self.backend, replay)(*args)
                    return result
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                self.failed = True
                reason = " ".join(str(error).split("\n\n")[0].split())
                logger.warning(
                    "torch.compile cannot be used here (%s); blocks run without it", reason
                )
        return function(*args)


@cache
def _compiled(
    function: Callable[..., Result], backend: str | Callable[..., Any], replay: bool
) -> Callable[..., Result]:
    # A break in the graph is an error, which `run` reports, instead of a slow step.
    made: Callable[..., Result] = torch.compile(
        function, backend=backend, fullgraph=True, mode="reduce-overhead" if replay else None
    )
    return made
