"""Macro accuracy of regions against the reference's numbers and against sums done by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from clipself_d2.evaluation.region_classification import (
    NEVER,
    RegionClassificationEvaluator,
    macro_accuracy,
    true_class_rank,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation" / "macc.npz"
NAMES = ("ant", "bee", "cat", "sky", "sea", "sand", "snow")
IS_THING = (True, True, True, False, False, False, False)
AXES = torch.eye(len(NAMES))


def evaluator(**options: Any) -> RegionClassificationEvaluator:
    usual = {"text_embeddings_KD": AXES, "class_names": NAMES, "is_thing": IS_THING}
    return RegionClassificationEvaluator(**(usual | options))


def regions(labels: list[int]) -> dict[str, torch.Tensor]:
    """Return the input of an image with these classes."""
    label_R = torch.tensor(labels, dtype=torch.int64)
    is_thing_K = torch.tensor(IS_THING)
    return {"region_classes": label_R, "region_is_thing": is_thing_K[label_R]}


def score(judge: RegionClassificationEvaluator, labels: list[int], **output: Any) -> Any:
    judge.reset()
    judge.process([regions(labels)], [output])
    return judge.evaluate()["region"]


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_legacy_numbers_are_the_references_exactly(batch_size: int) -> None:
    golden = np.load(GOLDEN)
    logits, labels = torch.from_numpy(golden["logits"]), torch.from_numpy(golden["labels"])
    is_thing = torch.from_numpy(golden["is_thing"]).to(torch.bool)
    num_classes = logits.shape[1]
    things = [bool(is_thing[labels == c].any()) or c == 4 for c in range(num_classes)]
    scores = {}
    for legacy in (True, False):
        judge = evaluator(
            text_embeddings_KD=torch.eye(num_classes),
            class_names=[str(c) for c in range(num_classes)],
            is_thing=things,
            legacy=legacy,
        )
        pieces = [slice(s, s + 4) for s in range(0, len(labels), 4)]
        inputs = [{"region_classes": labels[p], "region_is_thing": is_thing[p]} for p in pieces]
        outputs = [{"roi": logits[p]} for p in pieces]
        for start in range(0, len(pieces), batch_size):
            chosen = slice(start, start + batch_size)
            judge.process(inputs[chosen], outputs[chosen])
        scores[legacy] = judge.evaluate()["region"]
    wanted = {
        str(key).replace("x.", "roi."): 100 * float(value)
        for key, value in zip(golden["keys"], golden["values"], strict=True)
    }
    assert scores[True] == pytest.approx(wanted, abs=1e-12)
    assert scores[False] == pytest.approx(wanted, abs=100 * 2**-11)
    assert scores[False] != pytest.approx(wanted, abs=1e-6)


def test_accuracy_is_a_mean_over_classes_present() -> None:
    # ant: 1 of 3 right, bee: 1 of 1, cat: absent; sky: 0 of 1.
    answers = AXES[[0, 1, 1, 1, 4]]
    scores = score(evaluator(), [0, 0, 0, 1, 3], roi=answers)
    assert scores["roi.thing.macc1"] == pytest.approx(100 * (1 / 3 + 1) / 2, abs=1e-12)
    assert scores["roi.stuff.macc1"] == 0


def test_the_fifth_place_counts_and_the_sixth_does_not() -> None:
    falling = torch.tensor([[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    scores = score(evaluator(), [4, 5], crop=falling.expand(2, -1))
    assert scores["crop.stuff.macc1"] == 0
    assert scores["crop.stuff.macc5"] == 50


def test_right_embeddings_score_100_and_shifted_ones_0() -> None:
    labels = [0, 1, 2, 3, 4, 5, 6, 0]
    right = 3 * AXES[labels]
    scores = score(evaluator(), labels, roi=right, crop=right, mask=right)
    assert len(scores) == 3 * 2 * 2
    assert set(scores.values()) == {100.0}
    wrong = score(evaluator(), labels, roi=right.roll(1, dims=1))
    assert {wrong["roi.thing.macc1"], wrong["roi.stuff.macc1"]} == {0.0}


def test_novel_and_base_things_are_told_apart() -> None:
    novel = [True, False, False, True, False, False, False]
    scores = score(evaluator(novel_mask=novel), [0, 0, 1, 2, 3, 4], roi=AXES[[0, 1, 1, 1, 3, 3]])
    assert scores["roi.thing.novel.macc1"] == 50
    assert scores["roi.thing.base.macc1"] == 50
    assert scores["roi.thing.macc1"] == pytest.approx(50)
    assert scores["roi.thing.novel.macc5"] == pytest.approx(50)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_embedding_that_says_nothing_is_a_miss_with_a_word(
    value: float, messages: list[str]
) -> None:
    # Three classes only: every rank is below five, a vanished region must still miss.
    judge = evaluator(text_embeddings_KD=torch.eye(3), class_names="abc", is_thing=[True] * 3)
    judge.process(
        [{"region_classes": torch.tensor([0, 0]), "region_is_thing": torch.ones(2).bool()}],
        [{"mask": torch.stack([torch.full((3,), value), torch.eye(3)[0]])}],
    )
    scores = judge.evaluate()["region"]
    assert scores["mask.thing.macc1"] == scores["mask.thing.macc5"] == 50
    assert any("1 of 2 mask embeddings are zero or not finite" in text for text in messages)


def test_ties_are_held_against_the_embedding() -> None:
    undecided = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 1.0, 1.0]])
    rank = true_class_rank(undecided, torch.eye(3), torch.tensor([0, 1, 0]))
    assert rank.tolist() == [1, 1, 0]
    nothing = true_class_rank(torch.zeros(1, 3), torch.eye(3), torch.tensor([0]))
    assert nothing.tolist() == [NEVER]
    assert true_class_rank(torch.zeros(0, 3), torch.eye(3), torch.zeros(0).long()).shape == (0,)


def test_half_precision_embeddings_are_compared_in_double() -> None:
    text = torch.nn.functional.normalize(torch.randn(9, 16, generator=_seed(0)), dim=1)
    region = torch.randn(40, 16, generator=_seed(1)).to(torch.bfloat16)
    labels = torch.arange(40) % 9
    exact = true_class_rank(region.double(), text, labels)
    assert torch.equal(true_class_rank(region, text, labels), exact)
    assert torch.equal(true_class_rank(1e-3 * region.double(), text, labels), exact)
    close = torch.tensor([[1 + 1e-12, 1.0]] * 2, dtype=torch.float64)
    assert true_class_rank(close, torch.eye(2), torch.tensor([0, 1])).tolist() == [0, 1]


def test_macro_accuracy_rounds_in_legacy_mode_only() -> None:
    hits, seen = torch.tensor([1, 5, 0]), torch.tensor([3, 7, 0])
    exact = 100 * (1 / 3 + 5 / 7) / 2
    rounded = 100 * (float(np.float16(1 / 3)) + float(np.float16(5 / 7))) / 2
    assert macro_accuracy(hits, seen) == pytest.approx(exact, abs=1e-12)
    assert macro_accuracy(hits, seen, legacy=True) == pytest.approx(rounded, abs=1e-12)
    assert rounded != pytest.approx(exact, abs=1e-4)


def test_a_split_without_regions_is_nan_with_a_word(messages: list[str]) -> None:
    scores = score(evaluator(), [0, 1], roi=AXES[[0, 1]])
    assert math.isnan(scores["roi.stuff.macc1"])
    assert scores["roi.thing.macc1"] == 100
    assert "no region" in messages[-1]
    assert "nan" not in messages[-1]


def test_two_processes_score_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = _seed(2)
    labels = torch.randint(0, len(NAMES), (30,), generator=generator).tolist()
    found = AXES[labels] + torch.randn(30, len(NAMES), generator=generator)
    whole = score(evaluator(), labels, roi=found)

    judges = [evaluator(), evaluator()]
    for judge, part in zip(judges, (slice(0, 11), slice(11, 30)), strict=True):
        judge.process([regions(labels[part])], [{"roi": found[part]}])
    states: list[Any] = []

    def gather(state: Any, dst: int) -> list[Any]:
        states.append(state)
        return states if len(states) == 2 else []

    monkeypatch.setattr(comm, "gather", gather)
    with monkeypatch.context() as second_rank:
        second_rank.setattr(comm, "is_main_process", lambda: False)
        assert judges[1].evaluate() == {}
    assert judges[0].evaluate()["region"] == whole


def test_reset_forgets_and_nothing_seen_gives_nothing(messages: list[str]) -> None:
    judge = evaluator()
    judge.process([regions([0])], [{"roi": AXES[[1]]}])
    judge.reset()
    assert judge.evaluate() == {}
    assert "nothing to evaluate" in messages[-1]
    assert score(judge, [0], roi=AXES[[0]])["roi.thing.macc1"] == 100


def test_images_without_regions_change_nothing() -> None:
    judge = evaluator()
    judge.process(
        [regions([]), regions([0]), regions([])],
        [{"roi": torch.zeros(0, 7)}, {"roi": AXES[[0]]}, {}],
    )
    assert judge.evaluate()["region"]["roi.thing.macc1"] == 100


@pytest.mark.parametrize(
    ("item", "output", "words"),
    [
        (regions([0]), {"box": AXES[:1]}, "output has box, expected any of roi, crop, mask"),
        (regions([0]), {}, "output has no key"),
        (regions([0, 1]), {"roi": AXES[:1]}, r"roi has shape \(1, 7\), expected \(2, 7\)"),
        (regions([0]), {"roi": torch.zeros(1, 6)}, r"expected \(1, 7\)"),
        (
            {"region_classes": torch.tensor([7]), "region_is_thing": torch.tensor([True])},
            {"roi": AXES[:1]},
            "run from 7 to 7, expected 0 to 6",
        ),
        (
            {"region_classes": torch.tensor([3]), "region_is_thing": torch.tensor([True])},
            {"roi": AXES[:1]},
            "contradicts is_thing for class 'sky'",
        ),
    ],
)
def test_unfit_batches_are_refused(
    item: dict[str, Any], output: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        evaluator().process([{"image_id": 8, **item}], [output])


def test_a_kind_given_for_some_images_only_is_refused() -> None:
    judge = evaluator()
    both, one = {"roi": AXES[:1], "crop": AXES[:1]}, {"roi": AXES[:1]}
    judge.process([regions([0]), regions([0])], [both, one])
    with pytest.raises(ValueError, match="crop embeddings for 1 of 2 regions"):
        judge.evaluate()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_names": NAMES[:3]}, "class_names has 3 entries, but there are 7"),
        ({"is_thing": IS_THING[:2]}, "is_thing has 2 entries"),
        ({"novel_mask": [True]}, "novel_mask has 1 entries"),
        ({"text_embeddings_KD": 2 * AXES}, "norms from 2.0000 to 2.0000, expected 1"),
        ({"text_embeddings_KD": AXES[0]}, r"shape \(7,\), expected \(K, D\)"),
    ],
)
def test_tables_that_disagree_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        evaluator(**options)


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)
