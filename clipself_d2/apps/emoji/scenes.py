"""Scenes of the embedded world: sprites on stuff, with boxes and masks, from a seed.

Legend: H W pixels of the scene, I instances.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from clipself_d2.apps.emoji.textures import paint_textures
from clipself_d2.data.datasets.emoji_world import SpriteAtlas, World, load_atlas, load_world

UPPER_STUFF = ("sky", "brick wall", "wood", "water", "snow")
LOWER_STUFF = ("grass", "water", "wood", "sand", "snow", "road")
NUM_OBJECTS = (3, 9)
# Side of a sprite's cell, px; drawn log-uniformly.
SPRITE_SIZE = (32.0, 100.0)
MIN_VISIBLE = 0.7
MIN_INSIDE = 0.75
PLACEMENT_TRIES = 12


@dataclass(frozen=True)
class SceneObject:
    """One visible thing.

    Attributes:
        thing: Index into ``World.things``.
        box: Tight box of the visible pixels, XYXY px, exclusive ends.
        visible: Visible share of the whole sprite's pixels, in (0, 1].
    """

    thing: int
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class Scene:
    """One rendered picture with its ground truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        instance_map: (H, W) int16, 0 for stuff, i + 1 where ``objects[i]`` is visible.
        stuff_map: (H, W) uint8, index into ``World.stuff`` of the texture behind the objects.
        objects: The things, in the order of ``instance_map``.
    """

    image: np.ndarray
    instance_map: np.ndarray
    stuff_map: np.ndarray
    objects: tuple[SceneObject, ...]


class SceneRenderer:
    """Draws scenes; the same Generator state gives the same bytes.

    Args:
        atlas: Sprites; the three bundled training families when None.
        width: Width of a scene, px.
        height: Height of a scene, px.
    """

    def __init__(
        self, *, atlas: SpriteAtlas | None = None, width: int = 256, height: int = 192
    ) -> None:
        self.world: World = load_world()
        self.atlas = load_atlas() if atlas is None else atlas
        self.width, self.height = width, height
        self._tiles = paint_textures()

    def render(
        self,
        rng: np.random.Generator,
        *,
        class_probability: np.ndarray | None = None,
        num_objects: tuple[int, int] = NUM_OBJECTS,
    ) -> Scene:
        """Draw one scene.

        Args:
            rng: Source of all randomness.
            class_probability: (num_things,) chance of each thing; uniform when None.
            num_objects: Least and largest number of objects tried, inclusive.

        Returns:
            The scene; it holds fewer objects where no place was found for one.
        """
        canvas, stuff_map = self._background(rng)
        instance_map = np.zeros((self.height, self.width), np.int16)
        placed: list[tuple[int, int]] = []
        for _ in range(int(rng.integers(num_objects[0], num_objects[1] + 1))):
            thing = int(rng.choice(len(self.world.things), p=class_probability))
            area = self._place(rng, thing, canvas, instance_map, placed)
            if area:
                placed.append((thing, area))
        objects = []
        for number, (thing, area) in enumerate(placed, start=1):
            mask = instance_map == number
            visible = min(1.0, float(mask.sum()) / area)
            objects.append(SceneObject(thing, tight_box(mask), visible))
        image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        return Scene(image, instance_map, stuff_map, tuple(objects))

    def _background(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        stuff = self.world.stuff
        if rng.random() < 0.4:
            number = int(rng.integers(len(stuff)))
            stuff_map = np.full((self.height, self.width), number, np.uint8)
            return self._crop_tile(rng, stuff[number]), stuff_map
        upper = UPPER_STUFF[int(rng.integers(len(UPPER_STUFF)))]
        lower_choices = [name for name in LOWER_STUFF if name != upper]
        lower = lower_choices[int(rng.integers(len(lower_choices)))]
        x = np.arange(self.width, dtype=np.float32)
        horizon = self.height * rng.uniform(0.3, 0.65) + (x - self.width / 2) * rng.normal(0, 0.06)
        horizon += rng.uniform(0, 6) * np.sin(x / rng.uniform(12, 40) + rng.uniform(0, 6.28))
        below = np.arange(self.height)[:, None] >= horizon[None]
        top, bottom = self._crop_tile(rng, upper), self._crop_tile(rng, lower)
        canvas = np.where(below[..., None], bottom, top)
        stuff_map = np.where(below, stuff.index(lower), stuff.index(upper)).astype(np.uint8)
        return canvas, stuff_map

    def _crop_tile(self, rng: np.random.Generator, name: str) -> np.ndarray:
        tiles = self._tiles[name]
        tile = tiles[int(rng.integers(len(tiles)))]
        y = int(rng.integers(tile.shape[0] - self.height + 1))
        x = int(rng.integers(tile.shape[1] - self.width + 1))
        crop = tile[y : y + self.height, x : x + self.width]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        gain = rng.uniform(0.8, 1.15) * rng.uniform(0.94, 1.06, 3)
        return np.minimum(crop * gain.astype(np.float32), 255.0)

    def _place(
        self,
        rng: np.random.Generator,
        thing: int,
        canvas: np.ndarray,
        instance_map: np.ndarray,
        placed: list[tuple[int, int]],
    ) -> int:
        """Find a place for a thing and paint it; returns its area in px, 0 if none fits."""
        variants = self.atlas.sprites[thing]
        variant = variants[int(rng.integers(len(variants)))]
        for attempt in range(PLACEMENT_TRIES):
            largest = SPRITE_SIZE[1] * 0.93**attempt
            size = float(np.exp(rng.uniform(*np.log([SPRITE_SIZE[0], max(largest, 40.0)]))))
            sprite = _warp(rng, variant, size)
            side = sprite.shape[0]
            margin = 0.35 * size - (side - size) / 2
            left = int(round(rng.uniform(-margin, self.width + margin - side)))
            top = int(round(rng.uniform(-margin, self.height + margin - side)))
            x0, y0 = max(left, 0), max(top, 0)
            x1, y1 = min(left + side, self.width), min(top + side, self.height)
            inside = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
            solid = inside[..., 3] > 127
            area = int((sprite[..., 3] > 127).sum())
            if solid.sum() < MIN_INSIDE * area:
                continue
            window = instance_map[y0:y1, x0:x1]
            if not _leaves_others_visible(window, solid, instance_map, placed):
                continue
            alpha = inside[..., 3:].astype(np.float32) / 255.0
            canvas[y0:y1, x0:x1] *= 1.0 - alpha
            canvas[y0:y1, x0:x1] += _jitter_color(rng, inside[..., :3], alpha)
            window[solid] = len(placed) + 1
            return area
        return 0


def _warp(rng: np.random.Generator, variant: tuple[np.ndarray, ...], size: float) -> np.ndarray:
    """Rotate, mirror and scale a sprite; returns (side, side, 4) uint8, premultiplied."""
    angle = float(np.clip(rng.normal(0, 12), -30, 30))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    level = 0
    while level + 1 < len(variant) and variant[level + 1].shape[0] >= size:
        level += 1
    source = variant[level]
    scale = size / source.shape[0]
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    side = int(np.ceil(size * (abs(cos) + abs(sin))))
    linear = scale * np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    center = (source.shape[0] - 1) / 2
    offset = (side - 1) / 2 - linear @ np.array([center, center])
    matrix = np.concatenate([linear, offset[:, None]], axis=1)
    return cv2.warpAffine(source, matrix, (side, side), flags=cv2.INTER_LINEAR)


def _jitter_color(rng: np.random.Generator, color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    gain = (rng.uniform(0.8, 1.15) * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    shifted = color.astype(np.float32) * gain + np.float32(rng.uniform(-14, 14)) * alpha
    return np.clip(shifted, 0, 255 * alpha)


def _leaves_others_visible(
    window: np.ndarray,
    solid: np.ndarray,
    instance_map: np.ndarray,
    placed: list[tuple[int, int]],
) -> bool:
    if not placed:
        return True
    covered = np.bincount(window[solid], minlength=len(placed) + 1)[1:]
    for number in np.flatnonzero(covered):
        remaining = int((instance_map == number + 1).sum()) - int(covered[number])
        if remaining < MIN_VISIBLE * placed[number][1]:
            return False
    return True


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Find the smallest box around an (H, W) bool mask: XYXY px, exclusive ends."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
