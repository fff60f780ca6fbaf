import open_clip
import pytest
import torch

from clipself_d2.clip.model import load_clip

TEXTS = ["a photo of a police car.", "an emoji of a dog.", "a small tree.", "a"]


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    return load_clip("ViT-Ti-8-emoji").text


def test_tokens_are_those_of_open_clip(text):
    expected = open_clip.get_tokenizer("ViT-Ti-8-emoji")(TEXTS)
    assert torch.equal(text.tokenize(TEXTS), expected)
    assert expected.shape == (4, text.context_length)


def test_embeddings_are_those_of_open_clip_with_unit_norm(text):
    expected = text.clip.encode_text(text.tokenize(TEXTS), normalize=True)
    torch.testing.assert_close(text.encode(TEXTS), expected, rtol=0.0, atol=1e-6)
    assert expected.shape == (4, text.embed_dim)


def test_batch_size_changes_nothing(text):
    torch.testing.assert_close(
        text.encode(TEXTS, batch_size=3), text.encode(TEXTS), rtol=0, atol=1e-6
    )


def test_no_texts_give_no_rows(text):
    assert text.encode([]).shape == (0, text.embed_dim)
    assert text.tokenize([]).shape == (0, text.context_length)


def test_encoding_leaves_no_graph_but_forward_learns(text):
    assert not text.encode(TEXTS).requires_grad
    assert text(text.tokenize(TEXTS)).requires_grad


def test_long_text_is_cut_and_keeps_its_end(text):
    tokens = text.tokenize(["a dog " * 50])
    assert tokens.shape == (1, text.context_length)
    assert tokens[0, -1] == tokens.max()


def test_words_outside_the_merges_are_reported_once_in_order(text):
    names = ["police car", "Wombat", "zyx_wombat", "dog"]
    assert text.unseen_words(names) == ["wombat", "zyx"]


def test_clip_of_web_text_has_no_unseen_words(new_clip):
    assert new_clip("vit").text.unseen_words(["wombat", "zyxw"]) == []
