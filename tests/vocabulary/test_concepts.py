from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.concepts import ConceptPool, load_concept_table

CLIP = {"clip": "ViT-Ti-8-emoji", "weights": "emoji", "templates": "single", "embed_dim": 128}


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    file = tmp_path / "concepts.txt"
    file.write_text("dog,7\nfire engine,3\n")
    return file


def test_concepts_are_counted_with_repetitions_and_sorted() -> None:
    captions = ["b a", "a b", "a c", "b"]
    pool = ConceptPool.count(captions, str.split, min_count=2)
    assert pool == ConceptPool(("a", "b"), (3, 3))
    assert ConceptPool.count(captions, str.split, min_count=1).names == ("a", "b", "c")


def test_a_file_gives_back_the_pool(tmp_path: Path) -> None:
    pool = ConceptPool(("dog", "fire engine"), (7, 3))
    pool.save(tmp_path / "new" / "pool.txt")
    assert (tmp_path / "new" / "pool.txt").read_text() == "dog,7\nfire engine,3\n"
    assert ConceptPool.load(tmp_path / "new" / "pool.txt") == pool


def test_names_without_counts_and_with_commas_are_read(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("dog\nalligator, big\nalligator, small,12\n")
    assert ConceptPool.load(file) == ConceptPool(
        ("dog", "alligator, big", "alligator, small"), (0, 0, 12)
    )


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\n \n", "is empty; write it with"),
        (b"a,1\na,2\n", "repeats"),
        (b"\xff\xfe\x00", "no text"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.txt .*{complaint}"):
        ConceptPool.load(file)


def test_a_missing_file_names_the_tool() -> None:
    with pytest.raises(FileNotFoundError, match=r"build_concept_pool\.py"):
        ConceptPool.load("nowhere.txt")


def test_too_rare_nouns_name_the_flag() -> None:
    with pytest.raises(ValueError, match="occurs 3 times in 1 captions.*2 times; lower min_count"):
        ConceptPool.count(["a a"], str.split, min_count=3)
    with pytest.raises(ValueError, match="min_count is 0"):
        ConceptPool.count(["a a"], str.split, min_count=0)


def test_the_table_is_built_or_read_in_the_order_of_the_file(pool_file, tmp_path) -> None:
    built = load_concept_table(pool_file, **CLIP)
    expected = TextEmbeddings.load_or_build(
        Vocabulary.from_names(["dog", "fire engine"]),
        clip=CLIP["clip"],
        weights="emoji",
        templates="single",
    )
    torch.testing.assert_close(built, expected.embeddings_KD)
    expected.save(tmp_path / "own.pt")
    torch.save(3.0 * expected.embeddings_KD, tmp_path / "bare.pth")
    for name in ("own.pt", "bare.pth"):
        table = load_concept_table(pool_file, embedding_file=str(tmp_path / name), **CLIP)
        torch.testing.assert_close(table, built)


def test_a_table_of_another_width_or_of_other_concepts_is_refused(pool_file, tmp_path) -> None:
    torch.save(torch.ones(2, 64), tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match=r"64-d but ViT-Ti-8-emoji embeds into 128"):
        load_concept_table(pool_file, embedding_file=str(tmp_path / "narrow.pth"), **CLIP)
    TextEmbeddings(
        vocabulary=Vocabulary.from_names(["dog", "cat"]),
        embeddings_KD=F.normalize(torch.ones(2, 128), dim=1),
        background_D=None,
        clip=CLIP["clip"],
        templates="single",
    ).save(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"2 concepts that are not the 2 of .*concepts\.txt"):
        load_concept_table(pool_file, embedding_file=str(tmp_path / "other.pt"), **CLIP)
