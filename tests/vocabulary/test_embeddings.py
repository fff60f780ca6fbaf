"""Text embeddings: prompts averaged, kept on disk, refused when wrong."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_d2.vocabulary import (
    TextEmbeddings,
    Vocabulary,
    embeddings,
    fill_templates,
    get_templates,
)

D = 6


class StubEncoder:
    """Embeds a text as random numbers seeded by the text."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.calls += 1
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            rows.append(torch.randn(D, generator=torch.Generator().manual_seed(seed)))
        return F.normalize(torch.stack(rows), dim=1)


PETS = Vocabulary.from_names(["cat", "dog", "owl"], novel=["owl"])
TOOLS = Vocabulary.from_names(["saw", "axe"])


def build(vocabulary: Vocabulary = PETS, **options: object) -> TextEmbeddings:
    made_from = {"clip": "stub", "templates": "single", **options}
    return TextEmbeddings.build(StubEncoder(), vocabulary, **made_from)


def test_embedding_is_the_unit_mean_of_unit_sentences() -> None:
    built = build(templates="vild")
    assert built.embeddings_KD.shape == (3, D)
    for index, name in enumerate([*PETS.names, "background"]):
        sentences = fill_templates(name, get_templates("vild"))
        mean = StubEncoder().encode(sentences).mean(0)
        row = built.background_D if index == 3 else built.embeddings_KD[index]
        torch.testing.assert_close(row, mean / mean.norm())


def test_synonyms_are_averaged_with_the_name() -> None:
    pets = Vocabulary(("cat", "dog"), (True, True), synonyms=((), ("hound", "mutt")))
    built = build(pets)
    mean = StubEncoder().encode([f"a photo of a {word}." for word in ("dog", "hound", "mutt")])
    torch.testing.assert_close(built.embeddings_KD[1], F.normalize(mean.mean(0), dim=0))
    torch.testing.assert_close(built.embeddings_KD[0], build().embeddings_KD[0])


def test_a_sentence_is_encoded_once(monkeypatch) -> None:
    """Names that read alike, and synonyms that are names, share sentences."""
    encoded = []

    def watch(self, texts: Sequence[str]) -> Tensor:
        encoded.extend(texts)
        return original(self, texts)

    original = StubEncoder.encode
    monkeypatch.setattr(StubEncoder, "encode", watch)
    pets = Vocabulary(("cat", "Cat", "dog"), (True,) * 3, synonyms=((), ("dog",), ()))
    built = build(pets, background="dog")
    assert sorted(encoded) == ["a photo of a cat.", "a photo of a dog."]
    torch.testing.assert_close(built.embeddings_KD[2], built.background_D)
    middle = F.normalize(built.embeddings_KD[0] + built.embeddings_KD[2], dim=0)
    torch.testing.assert_close(built.embeddings_KD[1], middle)


def test_background_may_be_another_word_or_none() -> None:
    assert build(background=None).background_D is None
    torch.testing.assert_close(build(background="cat").background_D, build().embeddings_KD[0])


def test_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    pets = Vocabulary(("cat", "dog"), (True, False), ("f", "r"), (("puss",), ()))
    for built in (build(pets, weights="tag"), build(pets, background=None)):
        built.save(tmp_path / "deep" / "text.pt")
        loaded = TextEmbeddings.load(tmp_path / "deep" / "text.pt")
        assert loaded.vocabulary == pets
        assert (loaded.clip, loaded.templates, loaded.weights) == ("stub", "single", built.weights)
        assert torch.equal(loaded.embeddings_KD, built.embeddings_KD)
        assert (loaded.background_D is None) == (built.background_D is None)
        if built.background_D is not None:
            assert torch.equal(loaded.background_D, built.background_D)


def test_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "text.pt"
    build().save(file)
    before = file.read_bytes()

    def write_half(content: object, target: IO[bytes]) -> None:
        target.write(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(embeddings.torch, "save", write_half)
    with pytest.raises(KeyboardInterrupt):
        build(TOOLS).save(file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["text.pt"]


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "text.pt"
    build().save(file)
    content = file.read_bytes()
    damaged = [b"", b"no such format", content[: len(content) // 2], content[:-30], content[64:]]
    foreign = [[1, 2], {"embeddings": torch.ones(2)}, torch.ones(3)]
    for wrong in [*damaged, *foreign]:
        if isinstance(wrong, bytes):
            file.write_bytes(wrong)
        else:
            torch.save(wrong, file)
        with pytest.raises(ValueError, match=r"text\.pt are damaged or of another kind"):
            TextEmbeddings.load(file)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("names", ["cat", "hound", "owl"], "fingerprint"),
        ("names", ["cat", "dog"], "base_mask has 3 entries for 2"),
        ("embeddings", torch.ones(3, D) / D**0.5 * 1.5, "norm is not 1"),
        ("embeddings", torch.full((3, D), float("nan")), "norm is not 1"),
        ("embeddings", F.normalize(torch.ones(2, D)), "shape .2, 6. for 3 classes"),
        ("background", F.normalize(torch.ones(D + 1), dim=0), "background's embedding"),
    ],
)
def test_altered_file_is_refused(key: str, value, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "text.pt"
    build().save(file)
    content = torch.load(file, weights_only=True)
    torch.save({**content, key: value}, file)
    with pytest.raises(ValueError, match=f"damaged or of another kind.*{complaint}"):
        TextEmbeddings.load(file)


def test_missing_file_is_told() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt do not exist"):
        TextEmbeddings.load("nowhere.pt")


def test_another_width_is_refused() -> None:
    build().check(D)
    with pytest.raises(ValueError, match=r"stub are 6-d .* 512-d"):
        build().check(512)


def test_split_may_change_but_not_the_names() -> None:
    other = Vocabulary.from_names(["cat", "dog", "owl"])
    assert build().with_vocabulary(other).vocabulary is other
    with pytest.raises(ValueError, match="other names"):
        build().with_vocabulary(TOOLS)


@pytest.fixture
def encoder(monkeypatch) -> StubEncoder:
    """The text tower of whatever CLIP is loaded, and of any tag."""
    stub = StubEncoder()
    monkeypatch.setattr(embeddings, "load_clip", lambda name, weights: SimpleNamespace(text=stub))
    monkeypatch.setattr(
        embeddings,
        "find_weights",
        lambda name, weights: (None, Path(weights)) if Path(weights).is_file() else (weights, None),
    )
    return stub


def load_or_build(cache: Path, vocabulary: Vocabulary = PETS, **options: object) -> TextEmbeddings:
    made_from = {"clip": "stub", "weights": "tag", "templates": "single", **options}
    return TextEmbeddings.load_or_build(vocabulary, cache_dir=cache, **made_from)


def test_cache_is_read_the_second_time(tmp_path: Path, encoder: StubEncoder) -> None:
    first = load_or_build(tmp_path)
    second = load_or_build(tmp_path)
    assert encoder.calls == 1
    assert torch.equal(first.embeddings_KD, second.embeddings_KD)
    # Base and novel do not change an embedding, so another split shares the file.
    split = Vocabulary.from_names(["cat", "dog", "owl"], novel=["cat"])
    assert load_or_build(tmp_path, split).vocabulary == split
    assert encoder.calls == 1


def test_cache_tells_vocabularies_clips_weights_and_prompts_apart(
    tmp_path: Path, encoder: StubEncoder
) -> None:
    file = tmp_path / "clip.bin"
    file.write_bytes(b"1")
    others = [
        {},
        {"vocabulary": TOOLS},
        {"clip": "other"},
        {"weights": "other"},
        {"templates": "emoji"},
        {"weights": str(file)},
    ]
    for count, options in enumerate(others, 1):
        load_or_build(tmp_path / "cache", **options)
        assert encoder.calls == count, options
        assert len(list((tmp_path / "cache").iterdir())) == count, "each has a file of its own"
    file.write_bytes(b"22")
    load_or_build(tmp_path / "cache", weights=str(file))
    assert encoder.calls == len(others) + 1


def test_cache_follows_the_content_of_a_weights_file(tmp_path: Path, encoder: StubEncoder) -> None:
    file, copy = tmp_path / "clip.bin", tmp_path / "copy.bin"
    file.write_bytes(b"1")
    copy.write_bytes(b"1")
    os.utime(copy, ns=(5, 5))
    load_or_build(tmp_path / "cache", weights=str(file))
    load_or_build(tmp_path / "cache", weights=str(copy))
    assert encoder.calls == 1
    # In another process, as size and time are remembered in one.
    copy.write_bytes(b"2")
    os.utime(copy, ns=(5, 5))
    embeddings._content_digest.cache_clear()
    load_or_build(tmp_path / "cache", weights=str(copy))
    assert encoder.calls == 2


@pytest.mark.parametrize("damage", ["truncated", "other classes"])
def test_damaged_cache_is_built_again_with_a_warning(
    damage: str, tmp_path: Path, encoder: StubEncoder, caplog
) -> None:
    first = load_or_build(tmp_path)
    (file,) = tmp_path.iterdir()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    else:
        build(TOOLS).save(file)
    with caplog.at_level(logging.WARNING):
        again = load_or_build(tmp_path)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1
    assert "built again" in caplog.text
    assert file.name in caplog.text
    assert encoder.calls == 2
    assert torch.equal(first.embeddings_KD, again.embeddings_KD)
    assert load_or_build(tmp_path).vocabulary == PETS
    assert encoder.calls == 2


def test_aliases_share_the_cache_and_hub_ids_are_fit_for_a_file(tmp_path, encoder) -> None:
    load_or_build(tmp_path, templates="vild63", clip="hf-hub:org/name")
    assert load_or_build(tmp_path, templates="vild", clip="hf-hub:org/name").templates == "vild"
    assert encoder.calls == 1
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("text_hf-hub_org_name_")


def test_tower_may_be_wrapped_where_it_is_needed(tmp_path: Path, encoder: StubEncoder) -> None:
    wrapped = []

    def wrap(inner: StubEncoder) -> StubEncoder:
        wrapped.append(inner)
        return StubEncoder()

    load_or_build(tmp_path, wrap=wrap)
    load_or_build(tmp_path, wrap=wrap)
    assert wrapped == [encoder]
    assert encoder.calls == 0


def test_random_weights_and_no_folder_are_not_cached(tmp_path: Path, encoder: StubEncoder) -> None:
    load_or_build(tmp_path, weights=None)
    TextEmbeddings.load_or_build(PETS, clip="stub", weights="tag", templates="single")
    assert encoder.calls == 2
    assert list(tmp_path.iterdir()) == []


def test_words_are_kept_by_themselves_beside_the_mean(tmp_path) -> None:
    vocabulary = Vocabulary(("dog", "cat"), (True, True), synonyms=(("hound",), ()))
    built = TextEmbeddings.build(StubEncoder(), vocabulary, clip="c", templates="single")
    built.save(tmp_path / "words.pt")
    words, owner = TextEmbeddings.load(tmp_path / "words.pt").by_word()
    assert owner.tolist() == [0, 0, 1]
    torch.testing.assert_close(words[2], built.embeddings_KD[1])
    mean = torch.nn.functional.normalize(words[:2].mean(0), dim=0)
    torch.testing.assert_close(mean, built.embeddings_KD[0])
    plain = TextEmbeddings.build(
        StubEncoder(), Vocabulary.from_names(["dog", "cat"]), clip="c", templates="single"
    )
    assert plain.words_WD is None
    assert plain.by_word()[1].tolist() == [0, 1]
