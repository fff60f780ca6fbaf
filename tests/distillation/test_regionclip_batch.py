"""Parts of a batch, of one process and of two; the model is in test_regionclip.py."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from clipself_d2.distillation.regionclip_batch import PictureRows, first_row, gather_rows
from clipself_d2.distillation.regionclip_losses import PseudoLabels, image_text_contrastive


def test_shares_of_the_contrast_add_up_to_its_value_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    image_ND, text_ND = (torch.randn(5, 8, generator=generator) for _ in range(2))
    whole = image_ND.clone().requires_grad_()
    expected = image_text_contrastive(whole, text_ND, 0.1)
    expected.backward()
    counts = [2, 1, 2]
    rows = PictureRows.of_parts(list(image_ND.split(counts)), list(text_ND.split(counts)))
    assert [row.first for row in rows] == [0, 2, 3]
    parts = [part.clone().requires_grad_() for part in image_ND.split(counts)]
    losses = [row.loss(part, 0.1) for row, part in zip(rows, parts, strict=True)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(sum(losses), expected)
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)


def test_labels_are_cut_with_their_regions() -> None:
    keep = torch.tensor([True, False, True, True, False])
    labels = PseudoLabels(keep, torch.arange(6.0).view(3, 2), torch.tensor([1, 0, 1]))
    first, none, last = labels.split([2, 0, 3])
    assert first.keep.tolist() == [True, False]
    assert (first.targets.tolist(), last.targets.tolist()) == ([1], [0, 1])
    assert torch.equal(last.log_probs, labels.log_probs[1:])
    assert (len(none.keep), len(none.targets)) == (0, 0)


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
