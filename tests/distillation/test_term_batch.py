"""What terms read of a batch."""

from types import SimpleNamespace

import torch

from clipself_d2.clip import DenseFeatures
from clipself_d2.distillation.base import Scene
from clipself_d2.distillation.term_batch import Batch


def make_batch(sizes: list[tuple[int, int]], model: SimpleNamespace) -> Batch:
    dense = DenseFeatures(torch.zeros(len(sizes), 2, 3, 4), ())
    scene = Scene(torch.zeros(len(sizes), 3, 24, 32), [], dense, sizes)
    return Batch(model, [], torch.zeros(0, 2), scene)


def test_cells_with_padding_are_not_real() -> None:
    model = SimpleNamespace(student=SimpleNamespace(patch_size=8))
    real = make_batch([(24, 32), (17, 15), (3, 32)], model).real.view(3, 3, 4)
    assert real[0].all()
    # Of a cell that the picture fills in part nothing is compared.
    assert real[1].nonzero().tolist() == [[0, 0], [1, 0]]
    # A picture smaller than a cell keeps one row.
    assert real[2].nonzero()[:, 0].tolist() == [0, 0, 0, 0]


def test_the_models_are_asked_once_and_see_pixels() -> None:
    seen = []

    def vfm(pixels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        seen.append((float(pixels.mean()), grid))
        return torch.zeros(1, 5, *grid)

    model = SimpleNamespace(vfm=vfm, pixel_std=2.0, pixel_mean=100.0)
    batch = make_batch([(24, 32)], model)
    assert batch.vfm.shape == (1, 5, 3, 4)
    assert batch.vfm is batch.vfm
    assert seen == [(100.0, (3, 4))]
