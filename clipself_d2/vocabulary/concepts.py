"""Concept pools: the nouns of a caption corpus, with counts.

Legend: C concepts.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipself_d2.vocabulary.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

REMEDY = "write it with tools/build_concept_pool.py"


@dataclass(frozen=True)
class ConceptPool:
    """Nouns by falling frequency.

    Attributes:
        names: C concepts, lower case, compounds with blanks.
        counts: How often the corpus has each.

    Reference: RegionCLIP, arXiv 2112.09106, section 3.2: concepts of a corpus that occur at least
    100 times.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def count(
        cls, captions: Iterable[str], parse: Callable[[str], Sequence[str]], *, min_count: int = 100
    ) -> "ConceptPool":
        """Count the concepts of a corpus that occur ``min_count`` times at least.

        ``parse`` gives the concepts of a sentence, with repetitions, such as ``noun_chunks``. Equal
        counts are in alphabetical order; a ValueError says that no concept is frequent enough.
        """
        found: Counter[str] = Counter()
        num_captions = 0
        for caption in captions:
            num_captions += 1
            found.update(parse(caption))
        kept = sorted(
            ((name, count) for name, count in found.items() if count >= min_count),
            key=lambda row: (-row[1], row[0]),
        )
        if not kept:
            most = max(found.values(), default=0)
            raise ValueError(
                f"no concept occurs {min_count} times in {num_captions} captions, the most "
                f"frequent {most} times; lower min_count"
            )
        return cls(tuple(name for name, _ in kept), tuple(count for _, count in kept))

    def save(self, path: str | Path) -> None:
        """Write one ``noun,count`` a line into a text file, whose folder is made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(self.names, self.counts, strict=True)
        path.write_text("".join(f"{name},{count}\n" for name, count in rows), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "ConceptPool":
        """Read what ``save`` wrote, or a list of names.

        The text before the last comma of a line is the concept where a number follows it, as in
        RegionCLIP's files; concepts without a count have 0. A FileNotFoundError or ValueError says
        that the file is missing, empty, no text, or repeats a concept.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"concept file {path} does not exist; {REMEDY}")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"concept file {path} is no text ({error}); {REMEDY}") from error
        rows = [_read_line(line) for line in text.splitlines() if line.strip()]
        if not rows:
            raise ValueError(f"concept file {path} is empty; {REMEDY}")
        repeated = [name for name, times in Counter(name for name, _ in rows).items() if times > 1]
        if repeated:
            raise ValueError(f"concept file {path} repeats {repeated[:3]}; list every concept once")
        return cls(tuple(name for name, _ in rows), tuple(count for _, count in rows))

    @property
    def vocabulary(self) -> Vocabulary:
        """The concepts as classes."""
        return Vocabulary.from_names(self.names)


def _read_line(line: str) -> tuple[str, int]:
    name, comma, count = line.strip().rpartition(",")
    if comma and name.strip() and count.strip().isdecimal():
        return name.strip(), int(count)
    return line.strip(), 0
