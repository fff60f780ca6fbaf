import random

import numpy as np
import pytest
import torch

from clipself_d2.clip.randomness import own_randomness


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def test_a_block_leaves_the_generators_as_they_were_also_after_an_error() -> None:
    seed_all(3)
    expected = draw()
    seed_all(3)
    with own_randomness(1):
        draw()
    with pytest.raises(ZeroDivisionError), own_randomness(1):
        draw()[0] / 0
    assert draw() == expected
    assert torch.initial_seed() == 3


def test_a_block_draws_by_its_numbers_alone() -> None:
    drawn = {}
    for run in range(2):
        for numbers in ((1,), (1, 0, 1), (1, 1, 0), (2,)):
            seed_all(run)
            draw()
            with own_randomness(*numbers):
                drawn[run, numbers] = draw()
    for numbers in {key[1] for key in drawn}:
        assert drawn[0, numbers] == drawn[1, numbers]
    assert all(len({value[kind] for value in drawn.values()}) == 4 for kind in range(3))


def test_without_numbers_a_block_draws_by_the_seed_of_the_run() -> None:
    drawn = []
    for seed, before in ((3, 0), (3, 5), (4, 0)):
        torch.manual_seed(seed)
        torch.rand(before)
        with own_randomness():
            drawn.append(draw())
    assert drawn[0] == drawn[1] != drawn[2]
