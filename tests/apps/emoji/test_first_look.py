"""One picture of what the weights that come with the package say of typed words."""

from pathlib import Path

import numpy as np
from PIL import Image

from clipself_d2.apps.emoji.first_look import look, render_picture


def test_a_scene_is_drawn_with_its_answers(tmp_path: Path) -> None:
    assert look(["broccoli", "dog"], tmp_path / "look.png", seed=10, score=0.5) == ["broccoli"]
    with Image.open(tmp_path / "look.png") as drawn:
        assert drawn.width > 3 * render_picture(10).width * 0.9
        assert len(np.unique(np.asarray(drawn))) > 100
