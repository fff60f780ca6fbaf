"""Classes as data: names, which of them are novel, how frequent they are."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol


class ClassMetadata(Protocol):
    """What a vocabulary needs of a data set's metadata, such as Detectron2's ``Metadata``."""

    thing_classes: list[str]

    def get(self, key: str, default: object = None) -> object:
        """Return an optional entry."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes a classifier knows, in the order of its logits.

    Attributes:
        names: Class names, as prompted.
        base_mask: True for classes with training boxes; all True where nothing is known.
        frequency: "r", "c" or "f" for each class as in LVIS, or None.
        synonyms: Further names for each class, or an empty tuple.

    Raises:
        ValueError: If there is no class, a name is empty or repeated, or lengths differ.
    """

    names: tuple[str, ...]
    base_mask: tuple[bool, ...]
    frequency: tuple[str, ...] | None = None
    synonyms: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check the fields against one another."""
        if not self.names:
            raise ValueError("the vocabulary is empty; give at least one class name")
        if any(not name.strip() for name in self.names):
            raise ValueError(f"the vocabulary has an empty name among {list(self.names)[:10]}")
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise ValueError(f"the vocabulary repeats {repeated[:5]}; name every class once")
        for label, field in (("base_mask", self.base_mask), ("frequency", self.frequency)):
            if field is not None and len(field) != len(self.names):
                raise ValueError(
                    f"{label} has {len(field)} entries for {len(self.names)} class names"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.names)

    @property
    def novel_names(self) -> tuple[str, ...]:
        """Names of the classes without training boxes."""
        return tuple(n for n, base in zip(self.names, self.base_mask, strict=True) if not base)

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
            ValueError: If ``novel`` has a name that ``names`` lacks, or as the class does.
        """
        stripped = tuple(name.strip() for name in names)
        novel_set = {name.strip() for name in novel}
        unknown = sorted(novel_set - set(stripped))
        if unknown:
            raise ValueError(f"novel names {unknown[:5]} are not among the class names")
        return cls(stripped, tuple(name not in novel_set for name in stripped))

    @classmethod
    def from_metadata(cls, metadata: ClassMetadata) -> "Vocabulary":
        """Read the classes of a data set.

        Args:
            metadata: Object with ``thing_classes`` and, optionally, ``novel_classes`` (names) and
                ``class_frequency``.

        Returns:
            The vocabulary.
        """
        names = list(metadata.thing_classes)
        novel = metadata.get("novel_classes") or ()
        frequency = metadata.get("class_frequency")
        plain = cls.from_names(names, novel)  # type: ignore[arg-type]
        if frequency is None:
            return plain
        return cls(plain.names, plain.base_mask, tuple(frequency))  # type: ignore[arg-type]

    @classmethod
    def from_file(cls, path: str | Path) -> "Vocabulary":
        """Read class names from a text file, one a line, or a json list or object.

        Args:
            path: File; a json object has ``names`` and optionally ``novel``.

        Returns:
            The vocabulary.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is not of these forms.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"vocabulary file {path} does not exist")
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return cls.from_names([line for line in text.splitlines() if line.strip()])
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"vocabulary file {path} is not JSON: {error}") from error
        if isinstance(content, list):
            return cls.from_names(content)
        if not isinstance(content, dict) or "names" not in content:
            raise ValueError(f"vocabulary file {path} needs a list, or an object with 'names'")
        return cls.from_names(content["names"], content.get("novel", ()))
