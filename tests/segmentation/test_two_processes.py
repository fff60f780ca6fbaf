"""Two processes learn what one learns from both halves of the batch."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def steps(python, tmp_path_factory):
    """A step of both models in one process and in two: name to losses and gradients."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(folder / f"{name}.pth", weights_only=True) for name in ("one", "two")]


@pytest.mark.multi_process
@pytest.mark.parametrize("name", ["catseg_untouched", "ov_panoptic_untouched"])
def test_two_processes_learn_as_one(steps, name):
    one, two = (step[name] for step in steps)
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-5, atol=1e-6)
    assert two["gradients"].keys() == one["gradients"].keys()
    for key, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][key], gradient, rtol=1e-3, atol=1e-5, msg=key)
