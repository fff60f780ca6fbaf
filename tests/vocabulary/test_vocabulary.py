"""Vocabularies from names, files and metadata, and what they refuse."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.data.catalog import Metadata

from clipself_d2.vocabulary import Vocabulary


def test_names_keep_their_order_and_novel_classes_are_marked() -> None:
    vocabulary = Vocabulary.from_names([" cat", "dog ", "bird"], novel=["dog"])
    assert vocabulary.names == ("cat", "dog", "bird")
    assert vocabulary.base_mask == (True, False, True)
    assert vocabulary.novel_names == ("dog",)
    assert vocabulary.num_classes == 3


@pytest.mark.parametrize(
    ("names", "novel", "complaint"),
    [
        ([], [], "is empty"),
        (["cat", " "], [], "empty name"),
        (["cat", "_"], [], "empty name"),
        (["cat", "."], [], "empty name"),
        (["cat", "\u200b"], [], "empty name"),
        (["cat", "dog", "cat "], [], r"repeats \['cat'\]"),
        (["cat"], ["dog"], r"\['dog'\] are not among"),
        ("cat", [], "a list of texts"),
        (["cat", 3], [], "got 3"),
    ],
)
def test_wrong_names_are_refused(names, novel, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Vocabulary.from_names(names, novel)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"base_mask": (True,)}, "base_mask has 1 entries for 2"),
        ({"frequency": ("r",)}, "frequency has 1 entries for 2"),
        ({"frequency": ("r", "x")}, r"r, c or f for every class, not \['x'\]"),
        ({"synonyms": (("puss",),)}, "synonyms has 1 entries for 2"),
    ],
)
def test_fields_that_disagree_are_refused(fields, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Vocabulary(**{"names": ("cat", "dog"), "base_mask": (True, True), **fields})


def test_fingerprint_depends_on_names_their_order_and_synonyms_only() -> None:
    plain = Vocabulary.from_names(["cat", "dog"])
    assert plain.base_mask == (True, True)
    assert len(plain.fingerprint) == 64
    assert Vocabulary.from_names(["cat", "dog"], novel=["dog"]).fingerprint == plain.fingerprint
    others = [
        Vocabulary.from_names(["dog", "cat"]),
        Vocabulary.from_names(["cat, dog"]),
        Vocabulary(("cat", "dog"), (True, True), synonyms=(("puss",), ())),
    ]
    assert len({plain.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_metadata_gives_novel_classes_and_frequencies() -> None:
    metadata = Metadata(
        name="pets", thing_classes=["cat", "dog"], novel_classes=["dog"], class_frequency=["f", "r"]
    )
    vocabulary = Vocabulary.from_metadata(metadata)
    assert vocabulary == Vocabulary(("cat", "dog"), (True, False), ("f", "r"))


def test_metadata_with_classes_alone_is_all_base() -> None:
    for metadata in (Metadata(thing_classes=["cat"]), SimpleNamespace(thing_classes=["cat"])):
        assert Vocabulary.from_metadata(metadata) == Vocabulary(("cat",), (True,))


def test_text_file_has_one_name_a_line(tmp_path: Path) -> None:
    file = tmp_path / "pets.txt"
    file.write_bytes(b"\xef\xbb\xbfcat\r\n\r\npolice dog\r\n")
    assert Vocabulary.from_file(file).names == ("cat", "police dog")


def test_json_file_is_a_list_or_an_object(tmp_path: Path) -> None:
    file = tmp_path / "pets.json"
    file.write_text(json.dumps(["cat", "dog"]))
    assert Vocabulary.from_file(file) == Vocabulary.from_names(["cat", "dog"])
    file.write_text(
        json.dumps({"names": ["cat", "dog"], "novel": ["cat"], "synonyms": {"dog": ["hound"]}})
    )
    expected = Vocabulary(("cat", "dog"), (False, True), synonyms=((), ("hound",)))
    assert Vocabulary.from_file(file) == expected


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", "", "a.txt: the vocabulary is empty"),
        ("a.json", "[", "a.json: Expecting value"),
        ("a.json", '{"classes": []}', "a.json: a list is needed, or an object with 'names'"),
        ("a.json", '["cat", "cat"]', "a.json: the vocabulary repeats"),
        ("a.json", "[1]", "a.json: class names are texts"),
        ("a.json", '{"names": ["cat"], "synonyms": {"dog": []}}', r"a.json: .*\['dog'\]"),
    ],
)
def test_wrong_file_is_refused_by_name(name, content, complaint, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=complaint):
        Vocabulary.from_file(tmp_path / name)


def test_missing_and_binary_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        Vocabulary.from_file(tmp_path / "nowhere.txt")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"picture\.txt"):
        Vocabulary.from_file(tmp_path / "picture.txt")


def test_text_file_may_give_synonyms_behind_semicolons(tmp_path: Path) -> None:
    file = tmp_path / "pets.txt"
    file.write_text("cat; puss;tabby ;\ndog\nlamp, desk\n")
    expected = Vocabulary(
        ("cat", "dog", "lamp, desk"), (True,) * 3, synonyms=(("puss", "tabby"), (), ())
    )
    assert Vocabulary.from_file(file) == expected


def test_swapping_takes_the_first_synonym_and_keeps_the_split() -> None:
    pets = Vocabulary(
        ("cat", "dog", "owl"), (True, False, True), ("f", "c", "r"), (("puss", "tabby"), (), ("x",))
    )
    swapped = pets.swap_synonyms()
    assert swapped.names == ("puss", "dog", "x")
    assert (swapped.base_mask, swapped.frequency) == (pets.base_mask, pets.frequency)
    assert swapped.synonyms == ()
    assert swapped.fingerprint != pets.fingerprint
    plain = Vocabulary.from_names(["cat", "dog"])
    assert plain.swap_synonyms() == plain


def test_swapping_never_prompts_two_classes_alike() -> None:
    """A synonym that is another class's name or synonym, and one that is the name spelt anew."""
    pets = Vocabulary(
        ("cat", "wild_cat", "teddy_bear", "puma"),
        (True,) * 4,
        synonyms=(("Wild cat", "puss"), ("puss", "lynx"), ("Teddy Bear",), ("lynx",)),
    )
    assert pets.swap_synonyms().names == ("puss", "lynx", "teddy_bear", "puma")


def test_a_concept_pool_is_a_vocabulary_without_its_counts(tmp_path: Path) -> None:
    file = tmp_path / "concepts.txt"
    file.write_text("fire engine,812\nalligator, big\n")
    assert Vocabulary.from_file(file).names == ("fire engine", "alligator, big")


def test_novel_is_what_shares_no_word_with_a_base_class_of_the_training() -> None:
    training = Vocabulary(
        ("dog", "cat", "grass"),
        (True, False, True),
        synonyms=(("hound",), (), ("lawn",)),
        thing_mask=(True, True, False),
    )
    words = Vocabulary.from_names(["Hound ", "cat", "lawn", "sea"]).novel_to(training)
    assert words.base_mask == (True, False, True, False)
    assert words.thing_mask == (True, True, False, True)


def test_things_come_before_stuff() -> None:
    metadata = SimpleNamespace(
        thing_classes=["dog", "cat"],
        stuff_classes=["grass"],
        novel_classes=["cat"],
        class_synonyms=[["hound"]],
    )
    words = Vocabulary.with_stuff(metadata)
    assert words.names == ("dog", "cat", "grass")
    assert words.base_mask == (True, False, True)
    assert words.thing_mask == (True, True, False)
    assert words.words == (("dog", "hound"), ("cat",), ("grass",))


@pytest.mark.parametrize("names", [{"cat", "dog"}, {1: "cat"}, None, 3, b"cat"])
def test_what_is_no_list_is_refused(names) -> None:
    with pytest.raises(ValueError, match=r"class names are (a list of )?texts"):
        Vocabulary.from_names(names)


@pytest.mark.parametrize("novel", ["dog", 5, {"dog": 1}, None])
def test_what_is_no_list_of_novel_names_is_refused(novel) -> None:
    with pytest.raises(ValueError, match="novel names are a list of texts, got ['5{N]"):
        Vocabulary.from_names(["dog", "d", "o", "g"], novel=novel)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"names": None}, "class names are a list of texts, got None"),
        ({"names": 5}, "class names are a list of texts, got 5"),
        ({"names": [5]}, "class names are texts, got 5"),
        ({"names": ["a"], "novel": 5}, "novel names are a list of texts, got 5"),
        ({"names": ["a"], "novel": None}, "novel names are a list of texts, got None"),
        ({"names": ["a"], "novel": [5]}, "class names are texts, got 5"),
        ({"names": ["a"], "synonyms": {"a": [5]}}, "class names are texts, got 5"),
        ({"names": ["a"], "synonyms": 5}, "'synonyms' is an object"),
        ({"names": ["a"], "synonyms": ["b"]}, "'synonyms' is an object"),
        ({"names": ["a"], "synonyms": {"a": "b"}}, "to a list of further names"),
    ],
)
def test_fields_of_other_kinds_are_refused_by_file(tmp_path: Path, content, words: str) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as caught:
        Vocabulary.from_file(file)
    assert str(file) in str(caught.value)


def test_names_that_text_cannot_tell_apart_are_grouped() -> None:
    names = ["Dog", "cat", "dog", "police_car", "police  car", "Police car.", "owl"]
    alike = Vocabulary.from_names(names).look_alikes
    assert alike == (("Dog", "dog"), ("police_car", "police  car", "Police car."))
    assert Vocabulary.from_names(["cat", "dog"]).look_alikes == ()


FOREIGN = {
    "names.yaml": "- cat\n- dog\n",
    "names.csv": "cat,1\n",
    "list.txt": "- cat\n- dog\n",
    "keys.txt": "names:\n  0: cat\n",
    "numbers.txt": "0: cat\n1: dog\n",
    "table.txt": "1,cat\n2,dog\n",
    "tabs.txt": "1\tcat\n",
    "json.txt": '["cat", "dog"]\n',
    "object.txt": '{\n"names": ["cat"]}',
    "page.txt": "<html>\n",
    "header.txt": "name,count\ncat,3\ndog,2\n",
    "deep.json": "[" * 100_000,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_formats_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FOREIGN[name])
    with pytest.raises(ValueError, match=f"vocabulary file .*{name}: "):
        Vocabulary.from_file(tmp_path / name)


def test_blank_lines_between_names_are_said(tmp_path: Path, caplog) -> None:
    file = tmp_path / "pets.txt"
    file.write_text("\ncat\ndog\n\n")
    Vocabulary.from_file(file)
    assert not caplog.records
    file.write_text("cat\n\ndog\n")
    assert Vocabulary.from_file(file).names == ("cat", "dog")
    assert "blank lines" in caplog.text
