import pytest

from clipself_d2.vocabulary.lemmas import IRREGULAR, UNCHANGED, is_plural, lemmatize_noun

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
