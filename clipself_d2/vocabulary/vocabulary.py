"""Classes as data: names, which of them are novel, how frequent they are."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from clipself_d2.vocabulary.templates import clean_name

logger = logging.getLogger(__name__)

FREQUENCIES = frozenset("rcf")
# Between a name and its synonyms in a text file; names of data sets have commas, but not this.
_SEPARATOR = ";"
# The count behind a name in a concept pool.
_COUNT = re.compile(r",\s*\d+\s*$")
# Formats that are neither one class a line nor json, by the end of the file's name or by a line:
# items, keys, tables and markup.
_FOREIGN_SUFFIXES = (".yaml", ".yml", ".csv", ".tsv", ".toml", ".xml", ".html")
_FOREIGN_LINE = re.compile(r"\s*(- |---|[\[{<]|\d+\s*[:,]\s*\D)|.*(\t|:\s*$)")
# Characters of a value that a message shows.
_SHOWN = 80


class ClassMetadata(Protocol):
    """What a vocabulary needs of a data set's metadata, such as Detectron2's ``Metadata``."""

    thing_classes: list[str]


@dataclass(frozen=True)
class Vocabulary:
    """The classes a classifier knows, in the order of its logits.

    Attributes:
        names: Class names, as prompted.
        base_mask: True for classes with training boxes; all True where nothing is known.
        frequency: "r", "c" or "f" for each class as in LVIS, or None.
        synonyms: Further names for each class, prompted beside its name; or an empty tuple.
        thing_mask: True for countable classes, False for stuff; None where all are things.

    Raises:
        ValueError: If there is no class, a name is empty or repeated, a frequency is unknown, or
            lengths differ.
    """

    names: tuple[str, ...]
    base_mask: tuple[bool, ...]
    frequency: tuple[str, ...] | None = None
    synonyms: tuple[tuple[str, ...], ...] = ()
    thing_mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        if not self.names:
            raise ValueError("the vocabulary is empty; give at least one class name")
        if any(_is_blank(name) for name in self.names):
            raise ValueError(f"the vocabulary has an empty name among {list(self.names)[:10]}")
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise ValueError(f"the vocabulary repeats {repeated[:5]}; name every class once")
        fields = ("base_mask", "frequency", "thing_mask")
        given = {field: getattr(self, field) for field in fields}
        lengths = {field: len(value) for field, value in given.items() if value is not None}
        if self.frequency is not None:
            unknown = set(self.frequency) - FREQUENCIES
            if unknown:
                raise ValueError(f"frequency is r, c or f for every class, not {sorted(unknown)}")
        if self.synonyms:
            lengths["synonyms"] = len(self.synonyms)
            if any(_is_blank(synonym) for group in self.synonyms for synonym in group):
                raise ValueError("the vocabulary has an empty synonym; drop it")
        for field, length in lengths.items():
            if length != len(self.names):
                raise ValueError(f"{field} has {length} entries for {len(self.names)} class names")

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.names)

    @property
    def novel_names(self) -> tuple[str, ...]:
        """Names of the classes without training boxes."""
        return tuple(n for n, base in zip(self.names, self.base_mask, strict=True) if not base)

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """Name and synonyms of every class, the name first."""
        groups = self.synonyms or ((),) * self.num_classes
        return tuple((name, *more) for name, more in zip(self.names, groups, strict=True))

    @property
    def look_alikes(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names that a text tower reads as one, such as "Dog" and "dog"."""
        groups: dict[str, list[str]] = {}
        for name in self.names:
            groups.setdefault(" ".join(clean_name(name).split()), []).append(name)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def novel_to(self, training: "Vocabulary") -> "Vocabulary":
        """Call novel what a training vocabulary has no word for.

        A class is base where one of its words is, but for case and white space, a word of a base
        class of the training. Where it does not say which classes are stuff, those are that have a
        word in common with stuff of the training.

        Reference: the overlap of the geometric ensemble of ODISE, arXiv 2303.04803, and FC-CLIP,
        arXiv 2308.02487.
        """
        kinds = training.thing_mask or (True,) * training.num_classes
        words = [{word.strip().lower() for word in group} for group in training.words]
        seen = set().union(*(g for g, base in zip(words, training.base_mask, strict=True) if base))
        stuff = set().union(*(g for g, thing in zip(words, kinds, strict=True) if not thing))
        own = [{word.strip().lower() for word in group} for group in self.words]
        thing_mask = self.thing_mask or tuple(not group & stuff for group in own)
        base_mask = tuple(bool(group & seen) for group in own)
        return replace(self, base_mask=base_mask, thing_mask=thing_mask)

    def swap_synonyms(self) -> "Vocabulary":
        """Name every class by a synonym, to see how much a detector hangs on the very names.

        It is the first that no other class is prompted by, where there is one; this name alone is
        prompted.
        """
        taken = {clean_name(name) for name in self.names}
        names = list(self.names)
        for number, synonyms in enumerate(self.synonyms):
            free = [synonym for synonym in synonyms if clean_name(synonym) not in taken]
            if free:
                names[number] = free[0]
                taken.add(clean_name(free[0]))
        return replace(self, names=tuple(names), synonyms=())

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest over names and synonyms; equal for vocabularies with equal embeddings."""
        text = json.dumps([self.names, self.synonyms], ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @classmethod
    def from_names(cls, names: Sequence[str], novel: Iterable[str] = ()) -> "Vocabulary":
        """Make a vocabulary of plain names.

        Args:
            names: Class names; white space around them is dropped.
            novel: Those without training boxes.

        Returns:
            The vocabulary.

        Raises:
            ValueError: If one is no list of texts, ``novel`` has a name that ``names`` lacks, or as
                the class does.
        """
        # Sets have no order to count classes by, and a text is a sequence of letters.
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ValueError(f"class names are a list of texts, got {repr(names)[:_SHOWN]}")
        if isinstance(novel, str | Mapping) or not isinstance(novel, Iterable):
            raise ValueError(f"novel names are a list of texts, got {repr(novel)[:_SHOWN]}")
        stripped = tuple(_strip(name) for name in names)
        novel_set = {_strip(name) for name in novel}
        unknown = sorted(novel_set - set(stripped))
        if unknown:
            raise ValueError(f"novel names {unknown[:5]} are not among the class names")
        return cls(stripped, tuple(name not in novel_set for name in stripped))

    @classmethod
    def from_metadata(cls, metadata: ClassMetadata) -> "Vocabulary":
        """Read ``thing_classes`` and, optionally, ``novel_classes`` and ``class_frequency``."""
        novel = getattr(metadata, "novel_classes", None)
        frequency = getattr(metadata, "class_frequency", None)
        plain = cls.from_names(metadata.thing_classes, novel or ())
        return plain if frequency is None else replace(plain, frequency=tuple(frequency))

    @classmethod
    def with_stuff(cls, metadata: ClassMetadata) -> "Vocabulary":
        """Read the things and the stuff of a data set, things first, with ``thing_mask``.

        Metadata are as for ``from_metadata``, with ``stuff_classes`` and, optionally,
        ``class_synonyms`` (a list of further names for each of the first classes).
        """
        things = list(getattr(metadata, "thing_classes", None) or ())
        stuff = list(getattr(metadata, "stuff_classes", None) or ())
        plain = cls.from_names([*things, *stuff], getattr(metadata, "novel_classes", None) or ())
        is_thing = (True,) * len(things) + (False,) * len(stuff)
        given = getattr(metadata, "class_synonyms", None) or ()
        groups = [tuple(_strip(word) for word in group) for group in given]
        groups += [()] * (plain.num_classes - len(groups))
        synonyms = tuple(groups) if any(groups) else ()
        return replace(plain, thing_mask=is_thing, synonyms=synonyms)

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """Read class names, and further names of classes, from a file.

        Args:
            path: A text file with one class a line, its synonyms behind semicolons::

                    police car; squad car; patrol car
                    dog

                or a concept pool of ``name,count`` lines, whose counts are left out, or a json
                list of names, or a json object with ``names`` and optionally ``novel``
                (names) and ``synonyms`` (a list of further names for some of the names).

        Returns:
            The vocabulary; synonyms are prompted beside the name and averaged with it.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is not of these forms.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"vocabulary file {path} does not exist")
        try:
            # Some editors of Windows begin a file with a byte order mark.
            if path.suffix.lower() in _FOREIGN_SUFFIXES:
                raise ValueError(f"{path.suffix} is not read; write one class a line in a .txt")
            text = path.read_text(encoding="utf-8-sig")
            content: Any = json.loads(text) if path.suffix == ".json" else _read_lines(text)
            if isinstance(content, list):
                return cls.from_names(content)
            if not isinstance(content, dict) or "names" not in content:
                raise ValueError("a list is needed, or an object with 'names'")
            plain = cls.from_names(content["names"], content.get("novel", ()))
            synonyms = _check_synonyms(content.get("synonyms", {}), plain.names)
            if not synonyms:
                return plain
            groups = [tuple(_strip(word) for word in synonyms.get(n, ())) for n in plain.names]
            return replace(plain, synonyms=tuple(groups))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"vocabulary file {path}: {error}") from error


def _read_lines(text: str) -> dict[str, object]:
    """Turn lines of ``name; synonym; synonym`` into what a json object would say."""
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, line in numbered:
        if _FOREIGN_LINE.match(line):
            raise ValueError(f"line {number} is {line[:_SHOWN]!r}; write one class a line, or json")
    counted = [_COUNT.search(line) is not None for _, line in numbered]
    if len(counted) > 1 and all(counted[1:]) and not counted[0] and "," in numbered[0][1]:
        raise ValueError(f"the first line {numbered[0][1]!r} looks like a header; remove it")
    if numbered and numbered[-1][0] - numbered[0][0] >= len(numbered):
        logger.warning("blank lines of a list of classes are passed over and not counted")
    rows = [_COUNT.sub("", line).split(_SEPARATOR) for _, line in numbered]
    synonyms = {row[0].strip(): [word for word in row[1:] if word.strip()] for row in rows}
    return {
        "names": [row[0] for row in rows],
        "synonyms": {name: words for name, words in synonyms.items() if words},
    }


def _check_synonyms(synonyms: object, names: Sequence[str]) -> dict[str, list[str]]:
    if not isinstance(synonyms, dict) or any(not isinstance(v, list) for v in synonyms.values()):
        raise ValueError("'synonyms' is an object from a class name to a list of further names")
    unknown = sorted(set(synonyms) - set(names))
    if unknown:
        raise ValueError(f"synonyms are given for {unknown[:5]}, which are no class names")
    return synonyms


def _is_blank(name: str) -> bool:
    """Tell names of which nothing is left to read, such as "_" or a space of no width."""
    return not any(sign.isprintable() and not sign.isspace() for sign in clean_name(name))


def _strip(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f"class names are texts, got {name!r}")
    return name.strip()
