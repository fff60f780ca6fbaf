import math

import torch

from clipself_d2.apps.emoji.train_vfm import train_vision_model, view_loss
from clipself_d2.clip.vision_model import VisionModel


def test_views_that_agree_and_differ_from_all_others_cost_least() -> None:
    alike = torch.eye(4)
    # Beside the partner there are six others at right angles; temperature 0.2 is a factor of 5.
    expected = math.log1p(6 * math.exp(-5.0))
    torch.testing.assert_close(view_loss(alike, alike), torch.tensor(expected))
    assert view_loss(alike, alike.roll(1, 0)) > 5.0


def test_the_model_learns_and_its_file_is_a_vision_model(emoji_data, tmp_path) -> None:
    file = tmp_path / "new" / "vfm.pth"
    losses = train_vision_model(file, steps=12, batch_size=4, seed=0)
    assert sum(losses[-3:]) < sum(losses[:3])
    pixels = torch.rand(1, 3, 32, 32) * 255
    trained, random = (VisionModel("tiny", path)(pixels, (4, 4)) for path in (str(file), ""))
    assert (trained - random).abs().max() > 0.01
