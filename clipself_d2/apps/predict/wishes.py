"""What the flags of the demo ask for beside words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.prompts import ClassPrompt, PromptSet
from clipself_d2.apps.predict.slices import SlicePlan
from clipself_d2.vocabulary import Vocabulary


@dataclass(frozen=True)
class Wishes:
    """What is asked for beside the classes.

    Attributes:
        negative: Words scored and never reported.
        references: Pairs of a class and a picture, or a picture and its box. A class that the
            vocabulary has not is added, known by its references alone.
        thresholds: Pairs of a class and its least score.
        load_classes: File of a saved set, in place of all these; None for none.
        save_classes: File to save the set to.
        slices: How large pictures are cut.
        embeddings: Whether embeddings of the detections are written.
    """

    negative: Sequence[str] = ()
    references: Sequence[tuple[str, Any]] = ()
    thresholds: Sequence[tuple[str, float]] = ()
    load_classes: Path | None = None
    save_classes: Path | None = None
    slices: SlicePlan | None = None
    embeddings: bool = False


def set_wished_classes(
    predictor: OpenVocabPredictor, vocabulary: Vocabulary | None, wishes: Wishes
) -> None:
    """Give a predictor its classes: those of the words, if any, and of the wishes beside them."""
    if wishes.load_classes is not None:
        predictor.set_classes(PromptSet.load(wishes.load_classes))
        return
    if wishes.references or wishes.thresholds:
        predictor.set_classes(_prompts(vocabulary, wishes), wishes.negative)
    elif vocabulary is None:
        raise ValueError("there is no class; give --custom-vocabulary, --reference or --classes")
    else:
        predictor.set_classes(vocabulary, wishes.negative)
    if wishes.save_classes is not None and predictor.prompts is not None:
        predictor.prompts.save(wishes.save_classes)


def _prompts(vocabulary: Vocabulary | None, wishes: Wishes) -> list[ClassPrompt]:
    words = {} if vocabulary is None else {group[0]: ";".join(group) for group in vocabulary.words}
    if vocabulary is not None and not all(vocabulary.base_mask):
        raise ValueError(
            "--reference and --class-threshold go with --vocabulary custom or a file of names, not "
            "with a data set that has novel classes"
        )
    names = list(dict.fromkeys([*words, *(name for name, _ in wishes.references)]))
    scores = dict(wishes.thresholds)
    unknown = sorted(set(scores) - set(names))
    if unknown:
        raise ValueError(f"--class-threshold names {unknown}, but the classes are {names[:10]}")
    return [
        ClassPrompt(
            words.get(name, name),
            tuple(reference for known, reference in wishes.references if known == name),
            words=name in words,
            min_score=scores.get(name),
        )
        for name in names
    ]


def parse_reference(text: str) -> tuple[str, Any]:
    """Read ``NAME=PICTURE`` or ``NAME=PICTURE@left,top,right,bottom``: class and reference."""
    name, _, picture = (part.strip() for part in text.partition("="))
    file, _, corners = picture.rpartition("@") if picture.count(",") == 3 else (picture, "", "")
    try:
        box = tuple(float(side) for side in corners.split(",")) if corners else None
    except ValueError:
        file = ""
    if not (name and file):
        raise ValueError(
            f"--reference {text!r} is no NAME=PICTURE or NAME=PICTURE@left,top,right,bottom"
        )
    return name, file if box is None else (file, box)


def parse_threshold(text: str) -> tuple[str, float]:
    """Read ``NAME=SCORE``."""
    name, _, score = (part.strip() for part in text.rpartition("="))
    try:
        return name, float(score)
    except ValueError:
        raise ValueError(f"--class-threshold {text!r} is no NAME=SCORE, such as dog=0.4") from None
