"""Captioned pictures for the embedded CLIP: crops of fresh scenes with words for what they show.

Half of the pictures are crops around one object, as a teacher sees proposals; the others are
windows anywhere in the scene with none to several objects, as it sees grid patches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from clipself_d2.apps.emoji.scenes import Scene, SceneRenderer
from clipself_d2.data.pictures import fit_longest

WINDOWS_PER_SCENE = 4
WINDOW_SIZE = (40.0, 190.0)
MIN_SHARE_IN_WINDOW = 0.4
CAPTION_STARTS = ("", "a photo of ", "a picture of ", "a drawing of ", "there is ", "an emoji of ")


def article(name: str) -> str:
    """Put the indefinite article before a name."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def enumerate_names(names: Sequence[str]) -> str:
    """Join names as in a sentence, such as "a dog, an owl and a car"."""
    first = [article(name) for name in names]
    last = first.pop()
    return f"{', '.join(first)} and {last}" if first else last


@dataclass(frozen=True)
class CaptionedBatch:
    """One batch of pictures.

    Attributes:
        images: (N, 3, s, s) uint8 RGB.
        labels: (N, num_things + num_stuff) bool, the things a picture shows; its stuff where it
            shows no thing.
        captions: N sentences.
    """

    images: torch.Tensor
    labels: torch.Tensor
    captions: list[str]


class CaptionedPictures(IterableDataset[CaptionedBatch]):
    """Endless batches of captioned crops; batch b depends on (seed, b) alone.

    Args:
        batch_size: Pictures a batch.
        picture_size: Side of a picture, px.
        seed: Seed of all batches.
        num_batches: Number of batches.
    """

    def __init__(self, *, batch_size: int, picture_size: int, seed: int, num_batches: int) -> None:
        self.batch_size, self.picture_size = batch_size, picture_size
        self.seed, self.num_batches = seed, num_batches
        self.renderer = SceneRenderer()

    def __iter__(self) -> Iterator[CaptionedBatch]:
        """Yield the batches in order, every ``num_workers``-th in each worker."""
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, self.num_batches, step):
            yield self.batch(number)

    def batch(self, number: int) -> CaptionedBatch:
        """Make batch ``number``, counted from 0."""
        rng = np.random.default_rng([self.seed, number])
        images: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        captions: list[str] = []
        while len(images) < self.batch_size:
            scene = self.renderer.render(rng)
            boxes = [_loose_box(rng, scene, number) for number in range(len(scene.objects))]
            boxes += [_window(rng, scene) for _ in range(WINDOWS_PER_SCENE)]
            for box in boxes[: self.batch_size - len(images)]:
                things, stuff = _content(scene, box)
                images.append(crop_and_pad(scene.image, box, self.picture_size))
                labels.append(self._label(things, stuff))
                captions.append(self._caption(rng, things, stuff))
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return CaptionedBatch(pixels, torch.from_numpy(np.stack(labels)), captions)

    def _label(self, things: list[int], stuff: int) -> np.ndarray:
        world = self.renderer.world
        label = np.zeros(len(world.things) + len(world.stuff), bool)
        label[things if things else [len(world.things) + stuff]] = True
        return label

    def _caption(self, rng: np.random.Generator, things: list[int], stuff: int) -> str:
        world = self.renderer.world
        start = CAPTION_STARTS[int(rng.integers(len(CAPTION_STARTS)))]
        if not things:
            return start + world.stuff[stuff]
        text = enumerate_names([world.things[thing].name for thing in rng.permutation(things)[:4]])
        place = f" on {world.stuff[stuff]}" if rng.random() < 0.5 else ""
        return start + text + place


def crop_and_pad(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Cut an (H, W, 3) uint8 picture by XYXY px, scale it to ``size`` and centre it on black."""
    left, top, right, bottom = (round(float(side)) for side in box)
    crop = fit_longest(Image.fromarray(image).crop((left, top, right, bottom)), size)
    canvas = Image.new("RGB", (size, size))
    canvas.paste(crop, ((size - crop.width) // 2, (size - crop.height) // 2))
    return np.asarray(canvas)


def _loose_box(rng: np.random.Generator, scene: Scene, number: int) -> np.ndarray:
    x0, y0, x1, y1 = scene.objects[number].box
    side = np.array([x1 - x0, y1 - y0], np.float64)
    center = np.array([x0 + x1, y0 + y1]) / 2 + rng.uniform(-0.08, 0.08, 2) * side
    half = side * rng.uniform(0.95, 1.65) / 2
    return _clip(scene, np.concatenate([center - half, center + half]))


def _window(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    height, width = scene.image.shape[:2]
    size = np.exp(rng.uniform(*np.log(WINDOW_SIZE)))
    stretch = np.exp(rng.uniform(-0.6, 0.6))
    side = np.minimum(size * np.array([stretch, 1 / stretch]) ** 0.5, [width, height])
    corner = rng.uniform(0, 1, 2) * (np.array([width, height]) - side)
    return _clip(scene, np.concatenate([corner, corner + side]))


def _clip(scene: Scene, box: np.ndarray) -> np.ndarray:
    height, width = scene.image.shape[:2]
    return np.clip(np.round(box), 0, [width, height, width, height])


def _content(scene: Scene, box: np.ndarray) -> tuple[list[int], int]:
    """Things with a fair share of their pixels in the box, and the stuff behind most of it."""
    x0, y0, x1, y1 = box.astype(int)
    total = np.bincount(scene.instance_map.ravel(), minlength=len(scene.objects) + 1)[1:]
    window = scene.instance_map[y0:y1, x0:x1]
    inside = np.bincount(window.ravel(), minlength=len(scene.objects) + 1)[1:]
    enough = (inside >= MIN_SHARE_IN_WINDOW * total) & (inside >= 0.02 * window.size)
    things = sorted({scene.objects[number].thing for number in np.flatnonzero(enough)})
    stuff = int(np.bincount(scene.stuff_map[y0:y1, x0:x1].ravel()).argmax())
    return things, stuff
