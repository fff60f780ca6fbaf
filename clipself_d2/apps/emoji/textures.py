"""Stuff textures of the embedded world, drawn by noise and simple geometry.

Every painter takes a numpy Generator and a side in pixels and returns an (s, s, 3) uint8 RGB tile.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np

TILE_SIZE = 384
TILES_PER_TEXTURE = 3


def fractal_noise(
    rng: np.random.Generator, size: int, cells: int, octaves: int = 4, stretch: float = 1.0
) -> np.ndarray:
    """Sum of smooth random fields, each twice as fine and half as strong as the last.

    Args:
        rng: Source of randomness.
        size: Side of the field, px.
        cells: Random values along the vertical axis of the coarsest field.
        octaves: Number of fields.
        stretch: Ratio of horizontal to vertical cells; below 1 gives horizontal streaks.

    Returns:
        (size, size) float32, mean about 0, range about [-1, 1].
    """
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        rows = min(size, cells << octave)
        columns = int(np.clip(round(rows * stretch), 2, size))
        grid = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total / 1.4


def _shade(base: tuple[int, int, int], amount: np.ndarray, strength: float) -> np.ndarray:
    tile = np.array(base, np.float32) * (1.0 + strength * amount[..., None])
    return np.clip(tile, 0, 255)


def _mix(tile: np.ndarray, color: tuple[int, int, int], weight: np.ndarray) -> np.ndarray:
    return tile + (np.array(color, np.float32) - tile) * np.clip(weight, 0, 1)[..., None]


def _sky(rng: np.random.Generator, size: int) -> np.ndarray:
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None].repeat(size, 1)
    tile = _mix(_shade((92, 160, 232), height * 0, 0.0), (176, 214, 246), height)
    clouds = fractal_noise(rng, size, 4, stretch=0.5)
    return _mix(tile, (250, 252, 255), (clouds - 0.15) * 2.2)


def _grass(rng: np.random.Generator, size: int) -> np.ndarray:
    patches = fractal_noise(rng, size, 4)
    blades = fractal_noise(rng, size, 24, octaves=3, stretch=4.0)
    tile = _shade((86, 148, 58), patches * 0.4 + blades * 0.6, 0.35)
    return _mix(tile, (176, 204, 96), (blades - 0.55) * 1.5)


def _water(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    wobble = fractal_noise(rng, size, 6) * 9
    waves = np.sin((y + wobble + 3 * np.sin(x / 23)) * (2 * np.pi / 17))
    tile = _shade((28, 112, 152), waves + fractal_noise(rng, size, 5), 0.22)
    return _mix(tile, (196, 232, 240), (waves - 0.82) * 3)


def _brick_wall(rng: np.random.Generator, size: int) -> np.ndarray:
    height, width, mortar = 16, 36, 2
    y, x = np.mgrid[0:size, 0:size]
    row = y // height
    shifted = x + (row % 2) * (width // 2)
    brick_tone = rng.uniform(-1, 1, (size // height + 2, size // width + 3)).astype(np.float32)
    tone = brick_tone[row, shifted // width]
    tile = _shade((168, 78, 58), tone * 0.7 + fractal_noise(rng, size, 40, 2) * 0.4, 0.25)
    joint = (y % height < mortar) | (shifted % width < mortar)
    return _mix(tile, (204, 196, 186), joint.astype(np.float32))


def _wood(rng: np.random.Generator, size: int) -> np.ndarray:
    plank = 44
    y, _ = np.mgrid[0:size, 0:size]
    tone = rng.uniform(-1, 1, size // plank + 1).astype(np.float32)[y // plank]
    grain = fractal_noise(rng, size, 48, octaves=3, stretch=0.06)
    tile = _shade((158, 112, 66), tone * 0.5 + grain * 0.8, 0.28)
    return _mix(tile, (72, 46, 24), (y % plank < 2).astype(np.float32) * 0.8)


def _sand(rng: np.random.Generator, size: int) -> np.ndarray:
    dunes = fractal_noise(rng, size, 4, stretch=0.6)
    speckle = rng.normal(0, 1, (size, size)).astype(np.float32)
    return _shade((222, 190, 136), dunes * 0.6 + speckle * 0.35, 0.16)


def _snow(rng: np.random.Generator, size: int) -> np.ndarray:
    drift = fractal_noise(rng, size, 3)
    tile = _mix(_shade((240, 244, 250), drift * 0, 0.0), (186, 204, 228), (drift - 0.05) * 0.9)
    sparkle = (rng.uniform(0, 1, (size, size)) > 0.992).astype(np.float32)
    return _mix(tile, (255, 255, 255), sparkle)


def _road(rng: np.random.Generator, size: int) -> np.ndarray:
    speckle = rng.normal(0, 1, (size, size)).astype(np.float32)
    tile = _shade((96, 96, 100), fractal_noise(rng, size, 5) * 0.5 + speckle * 0.6, 0.2)
    y, x = np.mgrid[0:size, 0:size]
    line = (y % 128 < 9) & ((x + 17) % 72 < 44)
    return _mix(tile, (236, 232, 214), line.astype(np.float32) * 0.9)


PAINTERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "sky": _sky,
    "grass": _grass,
    "water": _water,
    "brick wall": _brick_wall,
    "wood": _wood,
    "sand": _sand,
    "snow": _snow,
    "road": _road,
}


@functools.cache
def paint_textures(seed: int = 0) -> dict[str, tuple[np.ndarray, ...]]:
    """Paint (TILE_SIZE, TILE_SIZE, 3) uint8 RGB tiles of every texture, the same for a seed."""
    tiles: dict[str, tuple[np.ndarray, ...]] = {}
    for number, (name, painter) in enumerate(PAINTERS.items()):
        rng = np.random.default_rng([seed, number])
        tiles[name] = tuple(
            np.clip(painter(rng, TILE_SIZE), 0, 255).astype(np.uint8)
            for _ in range(TILES_PER_TEXTURE)
        )
    return tiles
