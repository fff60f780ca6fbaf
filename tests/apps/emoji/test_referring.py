import json
from pathlib import Path

import numpy as np

from clipself_d2.apps.emoji.referring import choose_sentences, scene_sentences
from clipself_d2.apps.emoji.scenes import Scene, SceneObject, SceneRenderer
from clipself_d2.data.datasets.emoji_world import load_world


def scene_of(boxes: list[tuple[int, tuple[int, int, int, int]]]) -> Scene:
    instance_map = np.zeros((192, 256), np.int16)
    objects = []
    for number, (thing, (x0, y0, x1, y1)) in enumerate(boxes):
        instance_map[y0:y1, x0:x1] = number + 1
        objects.append(SceneObject(thing, (x0, y0, x1, y1), 1.0))
    image = np.zeros((192, 256, 3), np.uint8)
    return Scene(image, instance_map, np.zeros((192, 256), np.uint8), tuple(objects))


def test_no_sentence_fits_two_objects() -> None:
    renderer = SceneRenderer()
    for seed in range(15):
        sentences = scene_sentences(renderer.render(np.random.default_rng(seed)), load_world())
        targets: dict[str, set[int]] = {}
        for sentence in sentences:
            targets.setdefault(sentence.text, set()).add(sentence.target)
        assert all(len(found) == 1 for found in targets.values())
        assert sentences


def test_left_right_and_size_are_told_from_the_boxes() -> None:
    dog = load_world().thing_names.index("dog")
    scene = scene_of([(dog, (10, 50, 40, 80)), (dog, (150, 50, 240, 140))])
    by_text = {s.text: s.target for s in scene_sentences(scene, load_world())}
    assert by_text["the largest dog"] == 1
    left = [text for text in by_text if "left" in text and text.startswith("the dog")]
    right = [text for text in by_text if "right" in text and text.startswith("the dog")]
    assert left
    assert right
    assert {by_text[text] for text in left} == {0}
    assert {by_text[text] for text in right} == {1}


def test_equal_twins_at_the_same_height_are_not_told_apart_by_height_or_size() -> None:
    dog = load_world().thing_names.index("dog")
    scene = scene_of([(dog, (10, 50, 60, 100)), (dog, (150, 50, 200, 100))])
    texts = {s.text for s in scene_sentences(scene, load_world())}
    assert "the dog" not in texts
    assert not any("largest dog" in text or "top" in text for text in texts)


def test_a_unique_object_is_named_plainly() -> None:
    names = load_world().thing_names
    scene = scene_of(
        [(names.index("dog"), (10, 50, 60, 100)), (names.index("car"), (90, 9, 150, 60))]
    )
    by_text = {s.text: s.target for s in scene_sentences(scene, load_world())}
    assert by_text["the dog"] == 0
    assert by_text["the car"] == 1


def test_the_choice_repeats_with_its_generator() -> None:
    scene = SceneRenderer().render(np.random.default_rng(3))
    first, again = (
        choose_sentences(np.random.default_rng(0), scene, load_world()) for _ in range(2)
    )
    assert first == again


def test_the_file_has_refcocos_layout(emoji_root: Path) -> None:
    notes = emoji_root / "emoji" / "annotations"
    refs = json.loads((notes / "refs_val.json").read_text())
    rows = {
        r["id"]: r for r in json.loads((notes / "instances_val.json").read_text())["annotations"]
    }
    assert refs
    for ref in refs:
        assert rows[ref["ann_id"]]["image_id"] == ref["image_id"]
        assert rows[ref["ann_id"]]["category_id"] == ref["category_id"]
        assert [s["sent_id"] for s in ref["sentences"]] == ref["sent_ids"]
        assert all(s["tokens"] == s["sent"].split() for s in ref["sentences"])
