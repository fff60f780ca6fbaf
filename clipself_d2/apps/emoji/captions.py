"""Captions of whole scenes, in the words that the embedded CLIP reads."""

import numpy as np

from clipself_d2.apps.emoji.captioned import CAPTION_STARTS, enumerate_names
from clipself_d2.apps.emoji.scenes import Scene
from clipself_d2.data.datasets.emoji_world import World

CAPTIONS_PER_IMAGE = 2
MAX_NAMES = 4


def scene_captions(rng: np.random.Generator, scene: Scene, world: World) -> list[str]:
    """Write true captions that name some of a scene's things and, half of the time, its stuff.

    As on the web, a caption tells part of what a picture shows: at most ``MAX_NAMES`` classes.
    """
    bare = scene.instance_map == 0
    stuff = world.stuff[int(np.bincount(scene.stuff_map[bare]).argmax())]
    shown = sorted({thing.thing for thing in scene.objects})
    captions = []
    for _ in range(CAPTIONS_PER_IMAGE):
        chosen = rng.permutation(shown)[:MAX_NAMES]
        text = enumerate_names([world.things[int(thing)].name for thing in chosen])
        start = CAPTION_STARTS[int(rng.integers(len(CAPTION_STARTS)))]
        place = f" on {stuff}" if rng.random() < 0.5 else ""
        captions.append(f"{start}{text}{place}")
    return captions
