"""The embedded world's classes and sprites: what can appear in a scene.

Sprites come as one sheet a family (``datasets/emoji/*.webp``) with a common index; the classes
are fixed in ``data/datasets/emoji_categories.json``.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

CATEGORIES_FILE = Path(__file__).parents[1] / "datasets" / "emoji_categories.json"
# A wheel carries the sprites beside this file, a checkout in datasets/.
_SHIPPED = Path(__file__).parent / "emoji"
SPRITE_DIR = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[3] / "datasets" / "emoji"
TRAIN_FAMILIES = ("noto", "twemoji", "fluent")
UNSEEN_FAMILIES = ("openmoji",)
# Sheets under a share-alike licence are kept apart from the others.
UNSEEN_DIR = "unseen_style"


@dataclass(frozen=True)
class Thing:
    """One countable class.

    Attributes:
        id: Category id of the annotation files, 1-based, in alphabetical order of names.
        name: Natural name.
        group: Broad group such as animal or food.
        frequency: "f", "c" or "r" as in LVIS; "r" classes are the novel ones.
        rank: Place in the order of training frequency, 1 is the most frequent.
    """

    id: int
    name: str
    group: str
    frequency: str
    rank: int


@dataclass(frozen=True)
class World:
    """All classes.

    Attributes:
        things: Countable classes in the order of their ids.
        stuff: Names of the background textures.
        stuff_ids: Their category ids, which follow those of the things.
    """

    things: tuple[Thing, ...]
    stuff: tuple[str, ...]
    stuff_ids: tuple[int, ...]

    @property
    def thing_names(self) -> tuple[str, ...]:
        """Names of the things in the order of their ids."""
        return tuple(thing.name for thing in self.things)

    @property
    def novel_names(self) -> tuple[str, ...]:
        """Names of the rare things."""
        return tuple(thing.name for thing in self.things if thing.frequency == "r")

    def training_frequency(self) -> np.ndarray:
        """Zipf-Mandelbrot law over the ranks, p(k) ~ 1 / (k + 9): (num_things,), sum 1."""
        weight = 1.0 / (np.array([thing.rank for thing in self.things], dtype=np.float64) + 9.0)
        return weight / weight.sum()


@cache
def load_world() -> World:
    """Read the classes of the one and only embedded world."""
    table = json.loads(CATEGORIES_FILE.read_text(encoding="utf-8"))
    return World(
        things=tuple(Thing(**row) for row in table["things"]),
        stuff=tuple(row["name"] for row in table["stuff"]),
        stuff_ids=tuple(int(row["id"]) for row in table["stuff"]),
    )


def emoji_remedy(root: str | Path) -> str:
    """Say how the embedded data set is made, as an imperative clause."""
    return f"run python datasets/prepare_emoji.py --root {root}, or set DETECTRON2_DATASETS"


@dataclass(frozen=True)
class SpriteAtlas:
    """Sprites of every thing at three sizes, ready to be warped.

    Attributes:
        size: Side of the largest sprite, px.
        sprites: For each thing a tuple of variants (glyph x family); a variant is a tuple of
            (s, s, 4) uint8 RGBA arrays with premultiplied alpha, s = size, size/2, size/4.
    """

    size: int
    sprites: tuple[tuple[tuple[np.ndarray, ...], ...], ...]


@cache
def load_atlas(
    families: tuple[str, ...] = TRAIN_FAMILIES, sprite_dir: Path = SPRITE_DIR
) -> SpriteAtlas:
    """Cut the sprite sheets of some families into the world's sprites.

    ``sprite_dir`` holds ``index.json`` and one ``<family>.webp`` each, those of the unseen families
    in ``unseen_style/``.
    """
    index_path = sprite_dir / "index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    size, columns = int(index["sprite_size"]), int(index["columns"])
    sheets = []
    for family in families:
        with Image.open(sheet_path(family, sprite_dir)) as image:
            sheets.append(np.asarray(image.convert("RGBA")))
    variants: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for cell, row in enumerate(index["sprites"]):
        top, left = cell // columns * size, cell % columns * size
        for sheet in sheets:
            sprite = sheet[top : top + size, left : left + size]
            variants.setdefault(row["name"], []).append(_pyramid(sprite))
    return SpriteAtlas(size, tuple(tuple(variants[name]) for name in load_world().thing_names))


def sheet_path(family: str, sprite_dir: Path = SPRITE_DIR) -> Path:
    """Locate the WebP sheet of a family, whether it exists or not."""
    folder = sprite_dir / UNSEEN_DIR if family in UNSEEN_FAMILIES else sprite_dir
    return folder / f"{family}.webp"


def _pyramid(sprite: np.ndarray) -> tuple[np.ndarray, ...]:
    alpha = sprite[..., 3:].astype(np.uint16)
    # Rounded, not cut off.
    color = (sprite[..., :3].astype(np.uint16) * alpha + 127) // 255
    full = np.concatenate([color, alpha], axis=2).astype(np.uint8)
    half = cv2.resize(full, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    quarter = cv2.resize(half, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return full, half, quarter
