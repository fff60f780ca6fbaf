"""Words embedded by a tower that learns."""

import torch

from clipself_d2.clip import load_clip
from clipself_d2.segmentation.words import LearnedWords
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

WORDS = Vocabulary.from_names(["dog", "police car"])


def build() -> LearnedWords:
    torch.manual_seed(0)
    text = load_clip("ViT-Ti-8-emoji").text
    return LearnedWords(text=text, vocabulary=WORDS, templates="emoji", clip="ViT-Ti-8-emoji")


def test_both_ways_give_the_embeddings_of_the_vocabulary_room():
    words = build()
    expected = TextEmbeddings.build(
        words.text, WORDS, clip="", templates="emoji", background=None
    ).embeddings_KD
    torch.testing.assert_close(words(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(words.embed(WORDS).embeddings_KD, expected)


def test_cache_follows_names_prompts_and_weights():
    words = build()
    kept = words.embed(WORDS)
    other = words.embed(Vocabulary.from_names(["tree"]))
    assert words.embed(WORDS) is kept
    assert other.embeddings_KD.shape[0] == 1
    with torch.no_grad():
        next(words.text.parameters()).add_(0.1)
    assert words.embed(WORDS) is not kept
    assert len(words._built) == 1


def test_the_state_holds_the_tower_once():
    names = list(build().state_dict())
    assert all(name.startswith("text.clip.") for name in names)
