import pytest
import torch

from clipself_d2.evaluation.synonyms import (
    map_consistency,
    region_robustness,
    rename,
    robustness,
)

NAMES = ("dog", "sink", "bowl", "rock")
SYNONYMS = (("hound", "cur", "mutt"), ("bowl", "basin"), ("dish",), ())


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("first", [("hound",), ("basin",), ("dish",), ("rock",)]),
        ("index:1", [("cur",), ("basin",), ("dish",), ("rock",)]),
        ("mean", [("hound", "cur", "mutt"), ("basin",), ("dish",), ("rock",)]),
        ("mean_with_name", [("dog", "hound", "cur", "mutt"), ("sink", "basin")]
         + [("bowl", "dish"), ("rock",)]),
    ],
)  # fmt: skip
def test_modes_name_the_classes(mode, words) -> None:
    found = rename(NAMES, SYNONYMS, mode)
    assert list(found.words) == words
    assert found.replaced == 3


def test_a_synonym_that_is_another_class_is_flagged_and_not_used() -> None:
    assert rename(NAMES, SYNONYMS, "first").collisions == (("sink", "bowl"),)
    shared = rename(("door", "table"), (("Board",), ("board", "desk")), "first")
    assert shared.words == (("Board",), ("desk",))
    assert shared.collisions == (("table", "board"),)


def test_random_synonyms_are_those_of_their_seed() -> None:
    drawn = {rename(NAMES, SYNONYMS, f"random:{seed}").words[0] for seed in range(20)}
    assert drawn == {("hound",), ("cur",), ("mutt",)}
    first, again = (rename(NAMES, SYNONYMS, "random:3") for _ in range(2))
    assert first == again


@pytest.mark.parametrize("mode", ["second", "index", "index:", "random:x", "first:1", ""])
def test_an_unknown_mode_is_refused(mode) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        rename(NAMES, SYNONYMS, mode)


def test_robustness_by_hand() -> None:
    got = robustness(40.0, [30.0, 36.0])
    assert got == {"mean": 33.0, "spread": 3.0, "worst": 30.0, "drop": 7.0}


VECTORS = torch.eye(4)


def encode(words) -> torch.Tensor:
    table = {name: VECTORS[number] for number, name in enumerate(NAMES)}
    table |= {"hound": VECTORS[0], "basin": VECTORS[2], "dish": VECTORS[1], "cur": VECTORS[3]}
    rows = [torch.stack([table[word] for word in group]).mean(0) for group in words]
    return torch.stack(rows)


def accuracy(cosine_RK: torch.Tensor) -> float:
    return 100.0 * float((cosine_RK.argmax(1) == torch.arange(4)).double().mean())


def test_synonyms_that_mean_the_same_drop_nothing() -> None:
    same = (("hound",), (), (), ())
    got = region_robustness(VECTORS, NAMES, same, encode=encode, score=accuracy)
    assert (got["own"], got["drop"]) == (100.0, 0.0)


def test_synonyms_that_mean_one_another_cost_both_classes() -> None:
    swapped = ((), ("basin",), ("dish",), ())
    got = region_robustness(VECTORS, NAMES, swapped, encode=encode, score=accuracy)
    assert (got["mean"], got["drop"]) == (50.0, 50.0)


def test_maps_of_the_same_place_agree_whatever_their_scale() -> None:
    maps = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert map_consistency(maps, 3 * maps + 1)["cosine"] == pytest.approx(1.0)
    assert map_consistency(maps, -maps)["cosine"] == pytest.approx(-1.0)
