import torch

from clipself_d2.parts.pixels import PixelModel


def test_each_channel_has_its_own_statistics_which_are_not_saved() -> None:
    model = PixelModel(pixel_mean=(1, 2, 3), pixel_std=(2.0, 4.0, 8.0))
    pixels = torch.tensor([3.0, 6.0, 11.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(model.normalise(pixels), torch.ones(2, 3, 4, 5))
    assert model.state_dict() == {}
    assert model.device == torch.device("cpu")
