"""Two processes learn what one learns from both halves of the batch, and score the same."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("cris_two_processes.py")


def run(python, emoji_root, folder):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root), "OMP_NUM_THREADS": "1"}
    command = [python, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return (torch.load(folder / f"{name}.pth", weights_only=True) for name in ("one", "two"))


@pytest.mark.multi_process
def test_two_processes_learn_and_score_as_one(python, emoji_root, tmp_path):
    one, two = run(python, emoji_root, tmp_path)
    assert one["scores"]["ref_seg"]["n"] > 4
    assert two["scores"] == one["scores"]
    torch.testing.assert_close(two["loss"], one["loss"], rtol=1e-5, atol=1e-6)
    assert two["gradients"].keys() == one["gradients"].keys()
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
