"""Flags of the demo beside words."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from clipself_d2.apps.predict import wishes as module
from clipself_d2.apps.predict.prompts import parse_classes
from clipself_d2.apps.predict.wishes import (
    Wishes,
    parse_reference,
    parse_threshold,
    set_wished_classes,
)
from clipself_d2.vocabulary import Vocabulary


def test_references_are_read_with_and_without_a_box() -> None:
    assert parse_reference("dog=a b.jpg") == ("dog", "a b.jpg")
    assert parse_reference("dog=me@home.jpg@1,2,3.5,4") == (
        "dog",
        ("me@home.jpg", (1.0, 2.0, 3.5, 4.0)),
    )
    for text in ("a.jpg", "=a.jpg", "dog=", "dog=a.jpg@1,2,x,4"):
        with pytest.raises(ValueError, match="is no NAME=PICTURE"):
            parse_reference(text)


def test_thresholds_are_read() -> None:
    assert parse_threshold("police car=0.4") == ("police car", 0.4)
    with pytest.raises(ValueError, match="is no NAME=SCORE"):
        parse_threshold("police car")


class Recorder(SimpleNamespace):
    prompts = None

    def set_classes(self, classes, negative=()) -> None:
        self.asked = (classes, negative)


def test_wishes_become_prompts() -> None:
    predictor = Recorder()
    words = parse_classes(["dog;puppy", "owl"])
    wished = Wishes(
        negative=["toy"],
        references=[("dog", "a.jpg"), ("mine", "b.jpg")],
        thresholds=[("owl", 0.4)],
    )
    set_wished_classes(predictor, words, wished)
    (dog, owl, mine), negative = predictor.asked
    assert (dog.name, dog.references, dog.words) == ("dog;puppy", ("a.jpg",), True)
    assert (owl.references, owl.min_score) == ((), 0.4)
    assert (mine.name, mine.words) == ("mine", False)
    assert negative == ["toy"]
    set_wished_classes(predictor, words, Wishes())
    assert predictor.asked == (words, ())


def test_wishes_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no class; give"):
        set_wished_classes(Recorder(), None, Wishes())
    with pytest.raises(ValueError, match=r"names \['cat'\], but the classes are \['dog'\]"):
        set_wished_classes(Recorder(), parse_classes(["dog"]), Wishes(thresholds=[("cat", 0.1)]))
    novel = Vocabulary.from_names(["dog", "owl"], novel=["owl"])
    with pytest.raises(ValueError, match="go with --vocabulary custom"):
        set_wished_classes(Recorder(), novel, Wishes(thresholds=[("owl", 0.1)]))


def test_a_saved_set_stands_for_the_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    predictor = Recorder()
    monkeypatch.setattr(module.PromptSet, "load", lambda path: f"set of {path.name}")
    set_wished_classes(predictor, None, Wishes(load_classes=tmp_path / "pets.safetensors"))
    assert predictor.asked == ("set of pets.safetensors", ())
