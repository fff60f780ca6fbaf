"""Referring expressions: sentences that each identify exactly one object of a scene.

A sentence is a noun with a qualifier: "the dog", "the largest dog", "the animal on the left",
"the apple to the right of the bus". Nouns are class names, groups, or "object". Comparisons hold
with a margin, so that no sentence depends on a few pixels.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from clipself_d2.apps.emoji.annotations import Row
from clipself_d2.apps.emoji.scenes import Scene
from clipself_d2.data.datasets.emoji_world import World

MAX_SENTENCES = 3
# The largest object is at least this many times as large as any rival, in visible pixels.
SIZE_MARGIN = 1.3
# Distance of box centres along an axis that counts as left, right, above or below, px.
PLACE_MARGIN = 12.0
# Groups whose name is a natural noun for one of their members.
GROUP_NOUNS = frozenset({"animal", "vehicle", "plant"})
ANY_NOUN = "object"


class Sentence(NamedTuple):
    """An expression, and the index into ``Scene.objects`` of the only object that it fits."""

    text: str
    target: int


def scene_sentences(scene: Scene, world: World) -> list[Sentence]:
    """List, in a fixed order, all expressions that identify one object of a scene."""
    things = [world.things[thing.thing] for thing in scene.objects]
    boxes = np.array([thing.box for thing in scene.objects], np.float64).reshape(-1, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    areas = np.bincount(scene.instance_map.ravel(), minlength=len(things) + 1)[1:]
    members: dict[str, list[int]] = {}
    for number, thing in enumerate(things):
        members.setdefault(thing.name, []).append(number)
    anchors = {name: numbers[0] for name, numbers in members.items() if len(numbers) == 1}
    for number, thing in enumerate(things):
        if thing.group in GROUP_NOUNS:
            members.setdefault(thing.group, []).append(number)
    members[ANY_NOUN] = list(range(len(things)))
    sentences = []
    for noun, numbers in members.items():
        if len(numbers) == 1:
            sentences.append(Sentence(f"the {noun}", numbers[0]))
            continue
        sentences += _extremes(noun, np.array(numbers), areas, centers)
        if noun != ANY_NOUN:
            sentences += _relations(noun, numbers, anchors, centers)
    return sentences


def _extremes(
    noun: str, numbers: np.ndarray, areas: np.ndarray, centers: np.ndarray
) -> Iterator[Sentence]:
    """Sentences on the largest, smallest and outermost of several candidates."""
    order = numbers[np.argsort(areas[numbers], kind="stable")]
    if areas[order[-1]] >= SIZE_MARGIN * areas[order[-2]]:
        yield Sentence(f"the largest {noun}", int(order[-1]))
    if areas[order[1]] >= SIZE_MARGIN * areas[order[0]]:
        yield Sentence(f"the smallest {noun}", int(order[0]))
    for axis, low, high in ((0, "on the left", "on the right"), (1, "at the top", "at the bottom")):
        order = numbers[np.argsort(centers[numbers, axis], kind="stable")]
        places = centers[order, axis]
        if places[1] - places[0] >= PLACE_MARGIN:
            yield Sentence(f"the {noun} {low}", int(order[0]))
        if places[-1] - places[-2] >= PLACE_MARGIN:
            yield Sentence(f"the {noun} {high}", int(order[-1]))


def _relations(
    noun: str, numbers: list[int], anchors: dict[str, int], centers: np.ndarray
) -> Iterator[Sentence]:
    """Sentences on the only candidate at one side of an object whose class occurs once."""
    for name, anchor in anchors.items():
        rivals = np.array([number for number in numbers if number != anchor])
        for axis, low, high in ((0, "to the left of", "to the right of"), (1, "above", "below")):
            shift = centers[rivals, axis] - centers[anchor, axis]
            if (np.abs(shift) < PLACE_MARGIN).any():
                continue
            for words, side in ((low, rivals[shift < 0]), (high, rivals[shift > 0])):
                if len(side) == 1:
                    yield Sentence(f"the {noun} {words} the {name}", int(side[0]))


def choose_sentences(rng: np.random.Generator, scene: Scene, world: World) -> list[list[str]]:
    """Choose up to ``MAX_SENTENCES`` for every object; none where nothing tells it from others."""
    by_target: list[list[str]] = [[] for _ in scene.objects]
    for sentence in scene_sentences(scene, world):
        by_target[sentence.target].append(sentence.text)
    return [
        [texts[int(number)] for number in np.sort(rng.permutation(len(texts))[:MAX_SENTENCES])]
        for texts in by_target
    ]


def ref_rows(
    sentences: list[list[str]],
    instances: Sequence[Row],
    image: Row,
    *,
    split: str,
    first_ref_id: int,
    first_sentence_id: int,
) -> list[Row]:
    """Arrange an image's sentences, those of each object, as RefCOCO does."""
    rows: list[Row] = []
    sentence_id = first_sentence_id
    for texts, instance in zip(sentences, instances, strict=True):
        if not texts:
            continue
        sentence_rows: list[Row] = [
            {"sent_id": sentence_id + place, "sent": text, "raw": text, "tokens": text.split()}
            for place, text in enumerate(texts)
        ]
        sentence_id += len(texts)
        rows.append(
            {
                "ref_id": first_ref_id + len(rows),
                "ann_id": instance["id"],
                "image_id": instance["image_id"],
                "category_id": instance["category_id"],
                "file_name": image["file_name"],
                "split": split,
                "sent_ids": [row["sent_id"] for row in sentence_rows],
                "sentences": sentence_rows,
            }
        )
    return rows
