import math

import pytest
import torch

from clipself_d2.evaluation.region_classification import RegionClassificationEvaluator
from clipself_d2.evaluation.synonyms import (
    SynonymEvaluator,
    rename,
    replace_by_synonyms,
    robustness,
)
from clipself_d2.vocabulary import Vocabulary

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


def test_classes_take_the_first_synonym_that_is_nobodys_name() -> None:
    names = Vocabulary.from_names(["mug", "cup", "mail_box", "cat", "dog"], novel=["mug", "cat"])
    synonyms = [["Cup", "beaker", "pot"], ["beaker", "tumbler"], ["mail box", " "], [], ["hound"]]
    other, renamed = replace_by_synonyms(names, synonyms)
    assert other.names == ("beaker", "tumbler", "mail_box", "cat", "hound")
    assert (other.base_mask, renamed.replaced) == (names.base_mask, 3)
    # Stuff, which comes last, has none.
    assert replace_by_synonyms(names, synonyms[:2])[1].replaced == 2
    with pytest.raises(ValueError, match="class_synonyms has 6 entries for 5 classes"):
        replace_by_synonyms(names, [*synonyms, []])


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


class Counted:
    """An evaluator whose scores are the sums of what it was given."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total = 0.0

    def process(self, inputs, outputs) -> None:
        self.total += sum(outputs)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"bbox": {"AP50": self.total, "AP-dog": 1.0, "AP-novel": math.nan}}


def test_every_index_is_scored_beside_the_names() -> None:
    evaluator = SynonymEvaluator(
        own=Counted(),
        renamed=[Counted(), Counted()],
        predict=lambda inputs, index: [(5.0, 8.0)[index] * each for each in inputs],
    )
    for _ in range(2):
        evaluator.reset()
        evaluator.process([1.0], [10.0])
        evaluator.process([2.0, 1.0], [20.0, 10.0])
        found = evaluator.evaluate()
    assert found["bbox"]["AP50"] == 40.0
    got = {key.removeprefix("bbox.AP50."): value for key, value in found["synonyms"].items()}
    assert {key: got[key] for key in ("mean", "spread", "worst", "drop")} == {
        "mean": 26.0,
        "spread": 6.0,
        "worst": 20.0,
        "drop": 14.0,
    }
    assert math.isnan(found["synonyms"]["bbox.AP-novel.drop"])
    assert not any("dog" in key for key in found["synonyms"])
    assert evaluator.protocol()["synonym_indices"] == 2


def test_outputs_that_hang_on_no_name_are_shared() -> None:
    evaluator = SynonymEvaluator(own=Counted(), renamed=[Counted()])
    evaluator.process([1.0], [10.0])
    assert evaluator.evaluate()["synonyms"]["bbox.AP50.drop"] == 0.0


def region_scores(table_KD: torch.Tensor) -> RegionClassificationEvaluator:
    return RegionClassificationEvaluator(
        text_embeddings_KD=table_KD,
        class_names=["dog", "sink", "bowl", "rock"],
        is_thing=[True] * 4,
        distributed=False,
    )


@pytest.mark.parametrize(("order", "drop"), [([0, 1, 2, 3], 0.0), ([0, 2, 1, 3], 50.0)])
def test_synonyms_that_mean_the_same_drop_nothing_and_swapped_ones_cost_both(order, drop) -> None:
    own = torch.eye(4)
    evaluator = SynonymEvaluator(own=region_scores(own), renamed=[region_scores(own[order])])
    item = {"region_classes": torch.arange(4), "region_is_thing": torch.ones(4, dtype=torch.bool)}
    evaluator.process([item], [{"roi": torch.eye(4)}])
    found = evaluator.evaluate()
    assert found["region"]["roi.thing.macc1"] == 100.0
    assert found["synonyms"]["region.roi.thing.macc1.drop"] == drop
