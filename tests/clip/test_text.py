import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

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


ODD = [
    "There's   a PHOTO of the 24-inch T.V. set (used), isn't it?!\t\n",
    "caf\u00e9 & cr\u00e8me; &amp;lt; l\u2019\u00e9t\u00e9 \u201cquoted\u201d",
    "fish &amp; chips &lt;3",
    "<start_of_text> a <end_of_text>",
    "sch\u00c3\u00b6n \u732b \U0001f600 x\u00a0y",
    "",
    "antidisestablishmentarianism " * 60,
    *("".join(map(chr, range(first, first + 8))) * 2 for first in range(32, 127, 8)),
]


@pytest.mark.parametrize("length", [None, 16, 3])
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_tokens_of_odd_texts_are_those_of_open_clip(text, clean, length, monkeypatch):
    tokenizer = SimpleTokenizer(clean=clean)
    monkeypatch.setattr(text, "tokenizer", tokenizer)
    expected = tokenizer(ODD, context_length=length or text.context_length)
    # Twice, since words are looked up the second time.
    for _ in range(2):
        assert torch.equal(text.tokenize(ODD, length), expected)


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


@torch.no_grad()
def test_words_of_a_short_context_are_the_first_rows_of_the_full_one(text):
    full = text.tokenize(TEXTS)
    short = text.tokenize(TEXTS, 16)
    assert torch.equal(short, full[:, :16])
    words, state = text.word_features(short)
    all_words, all_state = text.word_features(full)
    torch.testing.assert_close(words, all_words[:, :16], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(state, all_state, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(state, text(full), rtol=0.0, atol=1e-5)
    assert words.shape == (4, 16, text.word_dim)


@torch.no_grad()
def test_towers_with_nested_text_give_words_too(new_clip):
    text = new_clip("eva").text
    tokens = torch.tensor([[3, 5, 199, 0, 0], [3, 199, 0, 0, 0]])
    full = torch.nn.functional.pad(tokens, (0, text.context_length - 5))
    words, state = text.word_features(tokens)
    torch.testing.assert_close(state, text(full), rtol=0.0, atol=1e-5)
    assert words.shape == (2, 5, text.word_dim)


def test_tokens_of_referring_expressions_are_those_of_the_released_code_of_cris(new_clip):
    path = Path(__file__).parents[1] / "golden" / "cris" / "tokens_affine.json"
    expected = json.loads(path.read_text())
    text = new_clip("vit").text
    for length, tokens in expected["tokens"].items():
        assert text.tokenize(expected["sentences"], int(length)).tolist() == tokens


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_padding_left_out_changes_no_embedding(new_clip, kind):
    """CLIP's text tower at the root and under "text."; texts of every length and order."""
    text = new_clip(kind).text
    words = [2, 9, 1, 14, 5, 14, 3]
    tokens = torch.zeros((len(words), 16), dtype=torch.long)
    for row, count in enumerate(words):
        tokens[row, :count] = torch.randint(1, 198, (count,))
        tokens[row, count] = 199
    text.tokenizer = lambda texts, context_length: tokens[[int(t) for t in texts]]
    expected = torch.nn.functional.normalize(text(tokens), dim=1)
    seen = []
    found = text.encode([str(i) for i in range(len(words))], batch_size=2, on_batch=seen.append)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert seen == [2, 2, 2, 1]


def test_padding_is_left_out_in_fact(text, monkeypatch):
    widths = []
    original = type(text).word_features

    def watch(self, tokens):
        widths.append(tokens.shape[1])
        return original(self, tokens)

    monkeypatch.setattr(type(text), "word_features", watch)
    text.encode(["a", "a dog", "a photo of a police car."], batch_size=2)
    assert widths == [4, 9]


def test_tower_that_sees_its_padding_reads_all_of_it(new_clip, monkeypatch):
    """Without causal mask, or pooled elsewhere than at the end token."""
    for change in ({"attn_mask": None}, {"text_pool_type": "last"}):
        text = new_clip("vit").text
        for name, value in change.items():
            setattr(text.clip, name, value)
        monkeypatch.setattr(text, "word_features", None)
        tokens = text.tokenize(["a dog"]).clamp(max=199)
        text.tokenizer = lambda texts, context_length, tokens=tokens: tokens
        expected = torch.nn.functional.normalize(text(tokens), dim=1)
        torch.testing.assert_close(text.encode(["a dog"]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("texts", ["dog", ["dog", None], [1]])
def test_what_is_no_list_of_texts_is_refused(text, texts):
    for read in (text.encode, text.tokenize):
        with pytest.raises(ValueError, match="texts are a list of strings"):
            read(texts)


def test_texts_longer_than_the_context_are_warned_of(text, caplog):
    # Start and end take two of the tokens.
    fits = "dog " * (text.context_length - 2)
    text.encode([fits, "dog"])
    assert not caplog.records
    text.encode(["a cat", fits + "dog"])
    (record,) = caplog.records
    assert "1 of 2 texts are longer than the 24 tokens" in record.getMessage()
    assert "'dog dog dog" in record.getMessage()
    assert len(record.getMessage()) < 200
