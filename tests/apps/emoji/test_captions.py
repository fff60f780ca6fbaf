import json
from pathlib import Path

import numpy as np

from clipself_d2.apps.emoji.captions import scene_captions
from clipself_d2.apps.emoji.scenes import SceneRenderer
from clipself_d2.data.datasets.emoji_world import load_world


def test_captions_name_only_what_the_scene_shows(rng: np.random.Generator) -> None:
    world = load_world()
    renderer = SceneRenderer()
    for _ in range(10):
        scene = renderer.render(rng)
        shown = {world.things[item.thing].name for item in scene.objects}
        captions = scene_captions(rng, scene, world)
        assert captions
        for caption in captions:
            assert any(name in caption for name in shown)
            words = f" {caption} "
            for name in set(world.thing_names) - shown:
                if not any(name in other for other in (*shown, *world.stuff)):
                    assert f" {name} " not in words, (name, caption)


def test_the_same_generator_gives_the_same_captions() -> None:
    scene = SceneRenderer().render(np.random.default_rng(2))
    first, again = (scene_captions(np.random.default_rng(0), scene, load_world()) for _ in range(2))
    assert first == again


def test_the_file_captions_every_image(emoji_root: Path) -> None:
    document = json.loads((emoji_root / "emoji/annotations/captions_train.json").read_text())
    captioned = {row["image_id"] for row in document["annotations"]}
    assert captioned == {image["id"] for image in document["images"]}
