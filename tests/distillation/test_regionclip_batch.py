"""Parts of a batch; several processes are in test_gather.py, the model in test_regionclip.py."""

import torch

from clipself_d2.distillation.regionclip_batch import PictureRows
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
