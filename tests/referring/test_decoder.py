import pytest
import torch

from clipself_d2.layers.positions import line_positions, map_positions
from clipself_d2.referring.decoder import CrisDecoder

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
CPU = torch.device("cpu")


@torch.no_grad()
def test_output_is_that_of_the_released_code(decoder, golden):
    expected = golden("decoder")
    got = decoder(expected["vis"], expected["txt"], expected["pad_mask"].bool())
    torch.testing.assert_close(got.flatten(2), expected["out"], **TOLERANCE)


@torch.no_grad()
def test_without_padding_too(decoder, golden):
    expected = golden("decoder")
    padding = torch.zeros_like(expected["pad_mask"]).bool()
    got = decoder(expected["vis"], expected["txt"], padding)
    torch.testing.assert_close(got.flatten(2), expected["out_no_padding_mask"], **TOLERANCE)


@torch.no_grad()
def test_every_layer_is_that_of_the_released_code(decoder, golden):
    expected = golden("decoder")
    cells = expected["vis"].flatten(2).permute(2, 0, 1)
    cell_positions = map_positions((6, 8), 16, CPU)[:, None]
    word_positions = line_positions(7, 16, CPU)[:, None]
    for number, layer in enumerate(decoder.layers):
        cells = layer(
            cells,
            expected["txt"].transpose(0, 1),
            expected["pad_mask"].bool(),
            cell_positions,
            word_positions,
        )
        if number == 0:
            torch.testing.assert_close(cells, expected["layer0_raw"], **TOLERANCE)
        got = decoder.norm(cells).permute(1, 2, 0)
        torch.testing.assert_close(got, expected["intermediate"][number], **TOLERANCE)


@torch.no_grad()
def test_padded_words_change_nothing(decoder, golden):
    expected = golden("decoder")
    padding = expected["pad_mask"].bool()
    words = torch.where(padding[:, :, None], torch.tensor(7.0), expected["txt"])
    got = decoder(expected["vis"], words, padding)
    torch.testing.assert_close(got.flatten(2), expected["out"], **TOLERANCE)


def test_dropout_acts_in_training_only(golden):
    torch.manual_seed(0)
    decoder = CrisDecoder(num_layers=1, dim=16, num_heads=4, ffn_dim=8, dropout=0.5)
    expected = golden("decoder")
    arguments = expected["vis"], expected["txt"], expected["pad_mask"].bool()
    assert not torch.equal(decoder(*arguments), decoder(*arguments))
    decoder.eval()
    assert torch.equal(decoder(*arguments), decoder(*arguments))


@pytest.mark.parametrize(("layers", "dim", "heads"), [(0, 16, 4), (1, 18, 2), (1, 16, 3)])
def test_impossible_sizes_name_their_keys(layers, dim, heads):
    with pytest.raises(ValueError, match=r"MODEL\.CRIS\.NUM_LAYERS"):
        CrisDecoder(num_layers=layers, dim=dim, num_heads=heads, ffn_dim=8)
