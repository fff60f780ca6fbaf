import numpy as np

from clipself_d2.apps.emoji.textures import PAINTERS, TILE_SIZE, fractal_noise, paint_textures
from clipself_d2.data.datasets.emoji_world import load_world


def test_every_stuff_has_a_painter() -> None:
    assert tuple(PAINTERS) == load_world().stuff
    assert len(PAINTERS) >= 6


def test_the_same_seed_paints_the_same_bytes_and_another_does_not() -> None:
    paint = paint_textures.__wrapped__
    first, again, other = paint(0), paint(0), paint(1)
    for name, tiles in first.items():
        assert tiles[0].shape == (TILE_SIZE, TILE_SIZE, 3)
        assert tiles[0].dtype == np.uint8
        assert all(np.array_equal(a, b) for a, b in zip(tiles, again[name], strict=True))
        assert not np.array_equal(tiles[0], other[name][0])


def test_textures_can_be_told_apart_by_colour_and_contrast() -> None:
    looks = {}
    for name, tiles in paint_textures().items():
        pixels = np.concatenate([tile.reshape(-1, 3) for tile in tiles]).astype(float)
        looks[name] = np.concatenate([pixels.mean(0), pixels.std(0)])
    names = list(looks)
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            assert np.abs(looks[name] - looks[other]).max() > 8, (name, other)


def test_noise_is_centred_and_bounded(rng: np.random.Generator) -> None:
    noise = np.stack([fractal_noise(rng, 64, 8) for _ in range(20)])
    assert abs(noise.mean()) < 0.1
    assert np.abs(noise).max() < 2.5
    assert noise.shape == (20, 64, 64)
