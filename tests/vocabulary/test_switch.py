"""Other classes for the time of a block, and the former ones afterwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipself_d2.layers import TextClassifier
from clipself_d2.layers.segment_classifier import SegmentTextClassifier
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

D = 6
PETS = Vocabulary.from_names(["cat", "dog", "owl"], novel=["owl"])
TOOLS = Vocabulary.from_names(["saw", "axe"])


def build(vocabulary: Vocabulary = PETS, background: str | None = "background") -> TextEmbeddings:
    """Embeddings of random rows, the same for the same words."""
    words = [word for group in vocabulary.words for word in group]
    rows = {
        word: torch.randn(D, generator=torch.Generator().manual_seed(sum(map(ord, word))))
        for word in (*words, "background")
    }
    unit = {word: F.normalize(row, dim=0) for word, row in rows.items()}
    return TextEmbeddings(
        vocabulary=vocabulary,
        embeddings_KD=torch.stack([unit[name] for name in vocabulary.names]),
        background_D=None if background is None else unit["background"],
        clip="stub",
        templates="single",
        words_WD=torch.stack([unit[word] for word in words]) if vocabulary.synonyms else None,
    )


def make_classifier(built: TextEmbeddings, **options: object) -> TextClassifier:
    return TextClassifier(
        embeddings_KD=built.embeddings_KD,
        base_mask_K=torch.tensor(built.vocabulary.base_mask),
        background=built.background_D,
        **options,
    )


def test_vocabulary_a_b_a_gives_identical_scores() -> None:
    model = nn.ModuleList([make_classifier(build()), make_classifier(build())])
    region_RD = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    first = [classifier(region_RD) for classifier in model]
    with use_vocabulary(model, build(TOOLS)):
        for classifier in model:
            assert classifier(region_RD).shape == (5, 3)
            assert classifier.num_classes == 2
            assert classifier.base_mask.tolist() == [True, True]
    assert model[0].base_mask.tolist() == [True, True, False]
    for classifier, scores in zip(model, first, strict=True):
        assert torch.equal(classifier(region_RD), scores)


def test_blocks_may_be_nested() -> None:
    model = make_classifier(build())
    with use_vocabulary(model, build(TOOLS)):
        with use_vocabulary(model, build(Vocabulary.from_names(["sun"]))):
            assert model.num_classes == 1
        assert model.num_classes == 2
    assert model.num_classes == 3


def test_classes_come_back_after_an_error() -> None:
    model = make_classifier(build())
    with pytest.raises(RuntimeError, match="in the block"), use_vocabulary(model, build(TOOLS)):
        raise RuntimeError("in the block")
    assert model.num_classes == 3


def test_embeddings_that_do_not_fit_leave_the_model_alone() -> None:
    model = nn.ModuleList(
        [make_classifier(build(), background_mode="zero"), make_classifier(build())]
    )
    with (
        pytest.raises(ValueError, match="no background"),
        use_vocabulary(model, build(TOOLS, background=None)),
    ):
        pytest.fail("the block ran")
    assert [classifier.num_classes for classifier in model] == [3, 3]


def test_model_without_text_classifier_is_refused() -> None:
    with (
        pytest.raises(ValueError, match="Linear has no text classifier"),
        use_vocabulary(nn.Linear(2, 2), build()),
    ):
        pytest.fail("the block ran")


def test_other_width_is_refused_before_anything_changes() -> None:
    model = make_classifier(build())
    wide = F.normalize(torch.ones(2, D + 1), dim=1)
    other = TextEmbeddings(TOOLS, wide, None, "wide", "single")
    with pytest.raises(ValueError, match="wide are 7-d"), use_vocabulary(model, other):
        pytest.fail("the block ran")
    assert model.num_classes == 3


def test_words_and_kinds_of_masks_are_switched_too() -> None:
    first = build()
    classifier = SegmentTextClassifier(
        embeddings_KD=first.embeddings_KD,
        base_mask_K=torch.ones(3, dtype=torch.bool),
        background=first.background_D,
    )
    before = [tensor.clone() for tensor in classifier.get_words()]
    other = Vocabulary(
        ("saw", "grass"), (True, False), synonyms=((), ("lawn",)), thing_mask=(True, False)
    )
    with use_vocabulary(classifier, build(other)):
        assert classifier.word_class_W.tolist() == [0, 1, 1]
        assert classifier.thing_mask.tolist() == [True, False]
    for got, wanted in zip(classifier.get_words(), before, strict=True):
        assert torch.equal(got, wanted)
