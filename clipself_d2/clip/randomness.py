"""Random numbers that the rest of a run does not notice."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def own_randomness(*seed: int) -> Iterator[None]:
    """Let a block draw from generators of its own; those of the run go on as if it were not there.

    Building a part draws random weights, whether or not a file then replaces them, and whether a
    part is built may depend on a cache. What comes after it must not. On the seeds, numbers >= 0,
    alone depends what the block draws from torch, on the CPU and the current GPU, from numpy and
    from python; none stands for the seed of torch's generator, which is that of the run.
    """
    words = np.random.SeedSequence(seed or [torch.initial_seed()]).generate_state(3, np.uint64)
    for_torch, for_numpy, for_python = (int(word) for word in words)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    has_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = [torch.cuda.current_device()] if has_gpu else []
    with torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed: it would seed all GPUs, also those that are used later.
        torch.default_generator.manual_seed(for_torch)
        if gpus:
            torch.cuda.manual_seed(for_torch)
        # numpy's old generator takes 32 bits.
        np.random.seed(for_numpy % 2**32)
        random.seed(for_python)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
