import pytest
import torch
import torch.nn.functional as F

from clipself_d2.referring.losses import text_to_pixel_contrastive_loss


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_loss_is_that_of_the_released_code(kind, golden):
    expected = golden("projector_loss")
    mask = expected[f"mask_{kind}_96x128"]
    loss = text_to_pixel_contrastive_loss(expected["logits"], mask)
    torch.testing.assert_close(loss, expected[f"loss_{kind}"], rtol=0, atol=1e-5)
    shrunk = F.interpolate(mask, (24, 32), mode="nearest")
    torch.testing.assert_close(shrunk, expected[f"mask_{kind}_resized"], rtol=0, atol=0)


def test_loss_is_the_papers_mean_over_positive_and_negative_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 3, 4)
    inside = torch.rand(2, 1, 3, 4) > 0.5
    terms = [-torch.sigmoid(logits)[inside].log(), -(1 - torch.sigmoid(logits)[~inside]).log()]
    expected = torch.cat(terms).mean()
    loss = text_to_pixel_contrastive_loss(logits, inside.float())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_huge_logits_stay_finite():
    logits = torch.full((1, 1, 2, 2), 1e4)
    loss = text_to_pixel_contrastive_loss(logits, torch.zeros(1, 1, 2, 2))
    assert loss.item() == pytest.approx(1e4)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 3, 4, 4), (2, 4, 4)])
def test_masks_of_other_pairs_are_refused(shape):
    with pytest.raises(ValueError, match=r"[Tt]arget size|[Ii]nput"):
        text_to_pixel_contrastive_loss(torch.zeros(2, 1, 2, 2), torch.zeros(shape))
