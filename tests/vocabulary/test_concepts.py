from pathlib import Path

import pytest

from clipself_d2.vocabulary.concepts import ConceptPool


def test_concepts_are_counted_with_repetitions_and_sorted() -> None:
    captions = ["b a", "a b", "a c", "b"]
    pool = ConceptPool.count(captions, str.split, min_count=2)
    assert pool == ConceptPool(("a", "b"), (3, 3))
    assert ConceptPool.count(captions, str.split, min_count=1).names == ("a", "b", "c")
    with pytest.raises(ValueError, match="occurs 4 times in 4 captions.*3 times; lower min_count"):
        ConceptPool.count(captions, str.split, min_count=4)


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
