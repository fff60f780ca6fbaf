"""CRIS's fixtures: what the released code computed on random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipself_d2.referring import CrisDecoder, CrisNeck, CrisProjector

GOLDEN = Path(__file__).parents[1] / "golden" / "cris"
Golden = Callable[[str], dict[str, Tensor]]


def read_golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def params(golden: dict[str, Tensor], prefix: str = "param/") -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def fill(module: nn.Module, golden: dict[str, Tensor]) -> nn.Module:
    """Load every parameter of a fixture, none left out on either side."""
    module.load_state_dict(params(golden))
    return module.eval()


@pytest.fixture(scope="session")
def golden() -> Golden:
    return read_golden


@pytest.fixture
def neck() -> CrisNeck:
    module = CrisNeck(in_dims=(16, 32, 24), state_dim=24, out_dims=(8, 16, 32))
    return fill(module, read_golden("neck"))


@pytest.fixture
def decoder() -> CrisDecoder:
    module = CrisDecoder(num_layers=3, dim=16, num_heads=4, ffn_dim=40, dropout=0.0)
    return fill(module, read_golden("decoder"))


@pytest.fixture
def projector() -> CrisProjector:
    module = CrisProjector(dim=16, state_dim=24, kernel_size=3)
    return fill(module, read_golden("projector_loss"))


@pytest.fixture
def projector_k1() -> CrisProjector:
    module = CrisProjector(dim=16, state_dim=24, kernel_size=1)
    return fill(module, read_golden("projector_k1"))
