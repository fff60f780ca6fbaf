"""Two processes with uneven batches have the loss and the gradient of one."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from clipself_d2.distillation.gather import first_row, gather_rows

ROOT = Path(__file__).parents[2]


def test_one_process_keeps_its_rows() -> None:
    rows = torch.randn(3, 4, requires_grad=True)
    assert gather_rows(rows) is rows
    assert first_row(len(rows), rows.device) == 0


@pytest.mark.multi_process
def test_two_processes_have_the_loss_and_gradient_of_one(python: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("gather_two_processes.py")
    done = subprocess.run(
        [python, str(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = torch.load(tmp_path / "one.pt", weights_only=True)
    for split in ("uneven", "even", "one_is_empty", "uneven_parts", "even_parts"):
        for rank in (0, 1):
            pair = torch.load(tmp_path / f"{split}_{rank}.pt", weights_only=True)
            torch.testing.assert_close(pair["loss"], one["loss"], rtol=1e-5, atol=1e-6)
            # What DistributedDataParallel would make of the gradients of both.
            torch.testing.assert_close(pair["grad"], one["grad"], rtol=1e-4, atol=1e-5)
    assert float(one["grad"].abs().max()) > 1e-3
