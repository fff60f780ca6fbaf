import pytest
import torch
from torch import nn

from clipself_d2.referring.norms import conv_norm_relu, norm_maker


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norms_take_maps_and_sentences_alike(norm):
    torch.manual_seed(0)
    vectors = torch.randn(4, 6)
    expected = nn.BatchNorm1d(6)(vectors)
    torch.testing.assert_close(norm_maker(norm)(6)(vectors), expected)
    torch.testing.assert_close(norm_maker(norm)(6)(vectors[:, :, None, None])[..., 0, 0], expected)


def test_batch_norm_of_one_sentence_names_the_remedy():
    module = norm_maker("BN")(6)
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH.*MODEL\.CRIS\.NORM to GN"):
        module(torch.randn(1, 6))
    assert module.eval()(torch.randn(1, 6)).shape == (1, 6)


def test_group_norm_divides_any_width():
    for channels in (6, 8, 48, 512):
        assert norm_maker("GN")(channels)(torch.randn(1, channels)).shape == (1, channels)


def test_convolution_keeps_the_grid_and_has_no_bias():
    block = conv_norm_relu(3, 8, 3, norm_maker("GN"))
    assert block(torch.randn(1, 3, 5, 7)).shape == (1, 8, 5, 7)
    assert block[0].bias is None
    assert block(torch.randn(1, 3, 5, 7)).min() == 0


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.CRIS\.NORM is 'LN', expected one of"):
        norm_maker("LN")
