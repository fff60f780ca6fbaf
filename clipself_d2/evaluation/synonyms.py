"""How much scores hang on the very names of classes: classes renamed by synonyms, and the drop.

Legend: R regions, K classes, D joint embedding.
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipself_d2.vocabulary.templates import clean_name

# "index:2" takes the third synonym, "random:7" one by the seed 7.
MODES = ("first", "index:N", "mean", "mean_with_name", "random:SEED")


@dataclass(frozen=True)
class Renamed:
    """Classes under other names.

    Attributes:
        words: Texts of each class; the embeddings of several are averaged.
        replaced: Number of classes that are prompted otherwise than before.
        collisions: Class and synonym, where the synonym is the name of another class, or taken by
            one before; such a synonym is not used.
    """

    words: tuple[tuple[str, ...], ...]
    replaced: int
    collisions: tuple[tuple[str, str], ...]


def rename(names: Sequence[str], synonyms: Sequence[Sequence[str]], mode: str) -> Renamed:
    """Name classes by synonyms.

    Args:
        names: K names.
        synonyms: Other names of each class, which may be none; such a class keeps its name.
        mode: "first" (the first synonym), "index:N" (the one of that number from 0; the last where
            there are fewer), "mean" (all of them), "mean_with_name" (all and the name), or
            "random:SEED" (one by chance).

    Returns:
        The words of every class.

    Raises:
        ValueError: If the mode is unknown or the lengths differ.
    """
    if not re.fullmatch(r"first|mean|mean_with_name|(index|random):\d+", mode):
        raise ValueError(f"synonyms are taken by {mode!r}; expected one of {MODES}")
    kind, _, number = mode.partition(":")
    if len(names) != len(synonyms):
        raise ValueError(
            f"{len(synonyms)} lists of synonyms for {len(names)} classes; one for each"
        )
    generator = np.random.default_rng(int(number) if number else 0)
    taken = {_plain(name) for name in names}
    words: list[tuple[str, ...]] = []
    collisions: list[tuple[str, str]] = []
    for name, given in zip(names, synonyms, strict=True):
        others = [word.strip() for word in given if word.strip() and _plain(word) != _plain(name)]
        collisions += [(name, word) for word in others if _plain(word) in taken]
        free = list(dict.fromkeys(word for word in others if _plain(word) not in taken))
        if not free:
            words.append((name,))
            continue
        if kind == "first":
            chosen = free[:1]
        elif kind == "index":
            chosen = [free[min(int(number), len(free) - 1)]]
        elif kind == "random":
            chosen = [free[int(generator.integers(len(free)))]]
        else:
            chosen = free
        taken |= {_plain(word) for word in chosen}
        words.append((name, *chosen) if kind == "mean_with_name" else tuple(chosen))
    replaced = sum(group != (name,) for group, name in zip(words, names, strict=True))
    return Renamed(tuple(words), replaced, tuple(collisions))


def robustness(own: float, renamed: Sequence[float]) -> dict[str, float]:
    """Summarise scores under several names.

    Args:
        own: Score under the classes' own names.
        renamed: Scores under synonyms, one for each index.

    Returns:
        ``mean``, ``spread`` (standard deviation over the indices), ``worst``, and ``drop``: the own
        score less the mean.

    Raises:
        ValueError: If there is no score under synonyms.
    """
    if not renamed:
        raise ValueError("there is no score under synonyms; give one index at least")
    mean = statistics.fmean(renamed)
    spread = statistics.pstdev(renamed)
    return {"mean": mean, "spread": spread, "worst": min(renamed), "drop": own - mean}


def region_robustness(
    region_RD: Tensor,
    names: Sequence[str],
    synonyms: Sequence[Sequence[str]],
    *,
    encode: Callable[[Sequence[Sequence[str]]], Tensor],
    score: Callable[[Tensor], float],
) -> dict[str, float]:
    """Score the same region embeddings under names and every index of synonyms.

    The picture is embedded once; a set of names is one product of matrices.

    Args:
        region_RD: Region embeddings, unit norm.
        names: K names.
        synonyms: Other names of each class.
        encode: From the words of K classes to (K, D) unit-norm embeddings.
        score: From (R, K) cosines to the score.

    Returns:
        ``own``, and what ``robustness`` says over indices 0 to the most synonyms of a class less
        one.
    """

    def value(words: Sequence[Sequence[str]]) -> float:
        return score(region_RD.double() @ encode(words).double().T)

    own = value([[name] for name in names])
    most = max((len(group) for group in synonyms), default=0)
    tables = [rename(names, synonyms, f"index:{number}").words for number in range(most)]
    return {"own": own, **robustness(own, [value(words) for words in tables] or [own])}


def map_consistency(name_NKhw: Tensor, synonym_NKhw: Tensor) -> Mapping[str, float]:
    """Compare the maps of names and of their synonyms, without any truth.

    Args:
        name_NKhw: Cosines of cells and names.
        synonym_NKhw: The same of synonyms.

    Returns:
        ``cosine``, the mean over classes and pictures of the cosine of both maps, each less its
        mean.
    """
    first, second = (
        part.flatten(2) - part.flatten(2).mean(-1, keepdim=True)
        for part in (name_NKhw.float(), synonym_NKhw.float())
    )
    return {"cosine": float(torch.cosine_similarity(first, second, dim=-1).mean())}


def _plain(word: str) -> str:
    return " ".join(clean_name(word).split())
