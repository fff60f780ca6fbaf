import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipself_d2.apps.emoji.sprites import (
    fit_sprite,
    lay_out_sheet,
    picture_renderer,
    read_code_points,
    sheet_difference,
)
from clipself_d2.data.datasets.emoji_world import SPRITE_DIR


def test_a_sprite_keeps_its_aspect_inside_its_cell() -> None:
    wide = Image.new("RGBA", (200, 100), (255, 0, 0, 255))
    sprite = np.asarray(fit_sprite(wide, 96))
    assert sprite.shape == (96, 96, 4)
    rows, columns = np.nonzero(sprite[..., 3] > 127)
    width, height = columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()
    assert width / height == pytest.approx(2.0, abs=0.1)


def test_cells_follow_one_another_row_by_row() -> None:
    colors = [(40 * number, 0, 0, 255) for number in range(5)]
    sheet = lay_out_sheet([Image.new("RGBA", (4, 4), color) for color in colors], columns=3)
    assert sheet.size == (12, 8)
    assert sheet.getpixel((1, 1)) == colors[0]
    assert sheet.getpixel((5, 1)) == colors[1]
    assert sheet.getpixel((5, 5)) == colors[4]


def test_the_index_names_one_code_point_a_cell() -> None:
    points = read_code_points(SPRITE_DIR / "index.json")
    assert len(points) == len(json.loads((SPRITE_DIR / "index.json").read_text())["sprites"])
    assert points[0] == "1f436"


def test_a_picture_is_found_by_its_code_point(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 9, 0, 255)).save(tmp_path / "1f436.webp", lossless=True)
    assert picture_renderer(tmp_path, "some-package")("1f436").getpixel((1, 1))[1] == 9


def test_a_missing_picture_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="some-package"):
        picture_renderer(tmp_path, "some-package")("1f436")


def test_a_sheet_does_not_differ_from_itself() -> None:
    assert sheet_difference(SPRITE_DIR / "noto.webp", SPRITE_DIR / "noto.webp") == 0
    assert sheet_difference(SPRITE_DIR / "noto.webp", SPRITE_DIR / "fluent.webp") > 1
