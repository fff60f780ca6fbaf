from pathlib import Path

import pytest

from clipself_d2.engine.concept_pool import build_concept_pool


def test_a_corpus_becomes_a_file_of_nouns_by_count(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text(
        "A man rides a horse.\nTwo horses near a fire engine\nthe horse and the fire engine\n"
    )
    output = tmp_path / "new" / "concepts.txt"
    pool = build_concept_pool(str(tmp_path / "captions.txt"), output, min_count=2)
    assert pool.names == ("horse", "fire engine")
    assert output.read_text() == "horse,3\nfire engine,2\n"


def test_the_embedded_captions_name_the_embedded_world(emoji_root, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(emoji_root))
    pool = build_concept_pool("emoji", tmp_path / "concepts.txt", min_count=1)
    from clipself_d2.data.emoji.world import load_world

    world = load_world()
    known = {*world.thing_names, *world.stuff, "photo", "picture", "drawing", "emoji"}
    assert set(pool.names) <= known
    assert len(pool.names) > 30


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\n")
    captions = str(tmp_path / "captions.txt")
    with pytest.raises(ValueError, match="--output .* is a folder"):
        build_concept_pool(captions, tmp_path, min_count=1)
    with pytest.raises(ValueError, match="lower --min-count"):
        build_concept_pool(captions, tmp_path / "out.txt", min_count=100)
    with pytest.raises(ValueError, match="--parser is 'nltk'"):
        build_concept_pool(captions, tmp_path / "out.txt", parser="nltk")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt has no caption"):
        build_concept_pool(str(tmp_path / "empty.txt"), tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()
