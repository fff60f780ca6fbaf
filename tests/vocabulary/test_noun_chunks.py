from types import SimpleNamespace

import pytest

from clipself_d2.vocabulary.noun_chunks import (
    IRREGULAR,
    UNCHANGED,
    document_chunks,
    is_plural,
    lemmatize_noun,
    load_parser,
    noun_chunks,
)


@pytest.mark.parametrize(
    ("caption", "concepts"),
    [
        ("A man riding a wave on top of a surfboard.", ["man", "wave", "top", "surfboard"]),
        ("Two dogs are playing with a red frisbee in the park", ["dog", "frisbee", "park"]),
        ("A man rides a brown horse near two buses", ["man", "horse", "bus"]),
        ("People ride horses on the beach", ["person", "horse", "beach"]),
        ("a bus ride in the city", ["bus ride", "city"]),
        ("Three men stand next to parking meters.", ["man", "parking meter"]),
        ("hot dogs and french fries on a dining room table",
         ["hot dog", "french fry", "dining room table"]),
        ("a white toilet and a hot stove", ["toilet", "stove"]),
        ("an orange cat with oranges and an orange", ["cat", "orange", "orange"]),
        ("the traffic light", ["traffic light"]),
        ("a light", ["light"]),
        ("a woman's hat", ["hat"]),
        ("he is riding it", []),
        ("", []),
    ],
)  # fmt: skip
def test_a_caption_gives_its_nouns(caption: str, concepts: list[str]) -> None:
    assert noun_chunks(caption) == concepts


def test_case_and_punctuation_do_not_matter() -> None:
    assert noun_chunks("A DOG, a cat;a bird!") == ["dog", "cat", "bird"]
    assert noun_chunks("a woman\u2019s hat") == ["hat"]


def test_the_embedded_world_is_found_in_its_captions() -> None:
    from clipself_d2.apps.emoji.captioned import article
    from clipself_d2.data.datasets.emoji_world import load_world

    world = load_world()
    for name in (*world.thing_names, *world.stuff):
        assert noun_chunks(f"there is {article(name)}, a book") == [name, "book"]


def test_spacy_chunks_are_roots_with_their_compounds() -> None:
    compound = SimpleNamespace(lemma_="fire", dep_="compound")
    adjective = SimpleNamespace(lemma_="red", dep_="amod")
    engine = SimpleNamespace(pos_="NOUN", lemma_="engine", children=[adjective, compound])
    it = SimpleNamespace(pos_="PRON", lemma_="it", children=[])
    document = SimpleNamespace(noun_chunks=[SimpleNamespace(root=engine), SimpleNamespace(root=it)])
    assert document_chunks(document) == ["fire engine"]


def test_unknown_and_absent_parsers_say_what_to_do(monkeypatch) -> None:
    with pytest.raises(ValueError, match="parser is 'nltk'.*rules"):
        load_parser("nltk")
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ValueError, match=r"clipself_d2\[concepts\]"):
        load_parser("spacy")
    assert load_parser("rules") is noun_chunks


PAIRS = """
    dogs dog, buses bus, glasses glasses, dresses dress, dishes dish, benches bench, boxes box,
    horses horse, planes plane, giraffes giraffe, cherries cherry, cookies cookie, ties tie,
    knives knife, people person, children child, policewomen policewoman, firemen fireman,
    salesmen salesman, skis ski, potatoes potato
"""


@pytest.mark.parametrize(("plural", "singular"), [pair.split() for pair in PAIRS.split(",")])
def test_a_plural_becomes_its_singular(plural: str, singular: str) -> None:
    assert lemmatize_noun(plural) == singular


@pytest.mark.parametrize(
    "word", ["bus", "glass", "scissors", "sunglasses", "cactus", "grass", "sheep", "tennis", "tv"]
)
def test_a_word_that_is_no_plural_stays(word: str) -> None:
    assert lemmatize_noun(word) == word
    assert not is_plural(word)


def test_a_singular_is_its_own_singular() -> None:
    for word in {*IRREGULAR.values(), *UNCHANGED}:
        assert lemmatize_noun(word) == word
