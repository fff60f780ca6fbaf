"""A small byte-pair vocabulary in open_clip's merges format, learnt from a list of words."""

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

NUM_BYTE_TOKENS = 512
NUM_SPECIAL_TOKENS = 2


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merge the most frequent neighbours of lower-case ASCII words until every word is one token.

    Merges in order of use; the last letter of a word carries open_clip's ``</w>`` mark.
    """
    pieces = {word: (*word[:-1], word[-1] + "</w>") for word in sorted(set(words))}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}


def _merge(parts: Sequence[str], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    position = 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            merged.append("".join(pair))
            position += 2
        else:
            merged.append(parts[position])
            position += 1
    return tuple(merged)


def write_merges(path: Path, merges: Sequence[tuple[str, str]]) -> int:
    """Write merges as .txt.gz for ``open_clip.tokenizer.SimpleTokenizer(bpe_path=path)``.

    The same merges give the same bytes. Returns the size of the vocabulary, byte and special tokens
    included.
    """
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-8"), mtime=0))
    return NUM_BYTE_TOKENS + len(merges) + NUM_SPECIAL_TOKENS
