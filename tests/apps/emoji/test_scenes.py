import hashlib
import subprocess

import numpy as np
import pytest

from clipself_d2.apps.emoji.scenes import (
    MIN_INSIDE,
    MIN_VISIBLE,
    NUM_OBJECTS,
    Scene,
    SceneRenderer,
)

_HASH = """
import hashlib
import numpy as np
from clipself_d2.apps.emoji.scenes import SceneRenderer
renderer = SceneRenderer()
scenes = [renderer.render(np.random.default_rng([5, k])) for k in range(4)]
digest = hashlib.sha256()
for scene in scenes:
    for part in (scene.image, scene.instance_map, scene.stuff_map):
        digest.update(part.tobytes())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def renderer() -> SceneRenderer:
    return SceneRenderer()


@pytest.fixture(scope="module")
def scenes(renderer: SceneRenderer) -> list[Scene]:
    return [renderer.render(np.random.default_rng([1, number])) for number in range(60)]


def test_scenes_are_the_same_bytes_in_another_process(renderer: SceneRenderer, python: str) -> None:
    digest = hashlib.sha256()
    for number in range(4):
        scene = renderer.render(np.random.default_rng([5, number]))
        for part in (scene.image, scene.instance_map, scene.stuff_map):
            digest.update(part.tobytes())
    printed = subprocess.run(
        [python, "-W", "ignore", "-c", _HASH], capture_output=True, text=True, check=True
    )
    assert printed.stdout.split()[-1] == digest.hexdigest()


def test_scenes_hold_3_to_9_objects(scenes: list[Scene]) -> None:
    counts = {len(scene.objects) for scene in scenes}
    assert min(counts) >= NUM_OBJECTS[0]
    assert max(counts) <= NUM_OBJECTS[1]
    assert len(counts) > 4


def test_boxes_are_the_extents_of_the_visible_pixels(scenes: list[Scene]) -> None:
    for scene in scenes:
        for number, item in enumerate(scene.objects):
            rows, columns = np.nonzero(scene.instance_map == number + 1)
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.box == expected


def test_occlusion_and_truncation_are_mild(scenes: list[Scene]) -> None:
    visible = [item.visible for scene in scenes for item in scene.objects]
    assert min(visible) >= MIN_VISIBLE * MIN_INSIDE
    assert 0.02 < np.mean(np.array(visible) < 0.95) < 0.6


def test_sizes_span_a_factor_of_three(scenes: list[Scene]) -> None:
    sizes = [
        ((item.box[2] - item.box[0]) * (item.box[3] - item.box[1])) ** 0.5
        for scene in scenes
        for item in scene.objects
    ]
    low, high = np.percentile(sizes, [2, 98])
    assert high / low >= 3


def test_the_instance_map_counts_the_objects(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert set(np.unique(scene.instance_map)) == set(range(len(scene.objects) + 1))
        assert scene.image.shape == (192, 256, 3)


def test_backgrounds_use_every_stuff(scenes: list[Scene]) -> None:
    seen = {int(number) for scene in scenes for number in np.unique(scene.stuff_map)}
    assert seen == set(range(8))


def test_only_classes_with_probability_are_drawn(renderer: SceneRenderer) -> None:
    probability = np.zeros(80)
    probability[[3, 40]] = 0.5
    scene = renderer.render(np.random.default_rng(0), class_probability=probability)
    assert {item.thing for item in scene.objects} <= {3, 40}
