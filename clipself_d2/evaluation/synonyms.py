"""How much scores hang on the very names of classes: classes renamed by synonyms, and the drop."""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from tabulate import tabulate

from clipself_d2.vocabulary import Vocabulary
from clipself_d2.vocabulary.templates import clean_name

logger = logging.getLogger(__name__)

# Scores by the names and by every index of synonyms, for ``SynonymEvaluator``.
ALL = "all"
# "index:2" takes the third synonym, "random:7" one by the seed 7.
MODES = ("first", "index:N", "mean", "mean_with_name", "random:SEED", ALL)
STATISTICS = ("mean", "spread", "worst", "drop")
# Beginnings of the metrics of single classes, which are not summarised, and what looks like them.
_OF_A_CLASS, _OF_A_SPLIT = ("AP-", "IoU-", "ACC-"), ("AP-base", "AP-novel")


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

    Raises:
        ValueError: If the mode is unknown or the lengths differ.
    """
    if not re.fullmatch(r"first|mean|mean_with_name|(index|random):\d+", mode):
        raise ValueError(f"synonyms are taken by {mode!r}; expected one of {MODES}")
    kind, _, number = mode.partition(":")
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
        # No two classes may go by one word.
        taken |= {_plain(word) for word in chosen}
        words.append((name, *chosen) if kind == "mean_with_name" else tuple(chosen))
    replaced = sum(group != (name,) for group, name in zip(words, names, strict=True))
    return Renamed(tuple(words), replaced, tuple(collisions))


def replace_by_synonyms(
    vocabulary: Vocabulary, synonyms: Sequence[Sequence[str]], mode: str = "first"
) -> tuple[Vocabulary, Renamed]:
    """Name classes by synonyms; their order and the base classes stay.

    ``synonyms`` are of the first classes, in order; a class without one that is nobody's name keeps
    its own. A ValueError says that there are more lists than classes, or that the mode is unknown.
    """
    if len(synonyms) > vocabulary.num_classes:
        raise ValueError(
            f"class_synonyms has {len(synonyms)} entries for {vocabulary.num_classes} classes; "
            "give a list of names, which may be empty, for every class"
        )
    # Metadata may list the first classes only.
    given = [*synonyms, *[()] * (vocabulary.num_classes - len(synonyms))]
    renamed = rename(vocabulary.names, given, mode)
    others = tuple(words[1:] for words in renamed.words)
    names = tuple(words[0] for words in renamed.words)
    return replace(vocabulary, names=names, synonyms=others if any(others) else ()), renamed


def robustness(own: float, renamed: Sequence[float]) -> dict[str, float]:
    """Summarise scores under several names: mean, spread, worst, and the own score less the mean.

    The spread is the standard deviation over the indices of synonyms, of which there is one at
    least.
    """
    mean, spread = float(np.mean(renamed)), float(np.std(renamed))
    worst = float(np.min(renamed))
    return dict(zip(STATISTICS, (mean, spread, worst, own - mean), strict=True))


class SynonymEvaluator(DatasetEvaluator):
    """Score classes under their own names and under every index of synonyms, from one pass.

    The result ``synonyms`` has for every metric of the own names, those of single classes apart,
    ``<task>.<metric>.<what>`` with what ``robustness`` says over the indices.

    Args:
        own: Evaluator of the classes under their own names.
        renamed: One for each index of synonyms.
        predict: From the inputs and the index to the outputs under that index's names; None where
            outputs do not hang on names, as region embeddings.
    """

    def __init__(
        self,
        *,
        own: DatasetEvaluator,
        renamed: Sequence[DatasetEvaluator],
        predict: Callable[[Sequence[Any], int], Sequence[Any]] | None = None,
    ) -> None:
        self._own, self._renamed, self._predict = own, tuple(renamed), predict

    def protocol(self) -> dict[str, object]:
        """Say by which rules the own names are scored, and the number of indices."""
        own = self._own.protocol() if hasattr(self._own, "protocol") else {}
        return {**own, "synonym_indices": len(self._renamed)}

    def reset(self) -> None:
        """Forget all predictions."""
        for evaluator in (self._own, *self._renamed):
            evaluator.reset()

    def process(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take a batch under all names."""
        self._own.process(inputs, outputs)
        for index, evaluator in enumerate(self._renamed):
            again = outputs if self._predict is None else self._predict(inputs, index)
            evaluator.process(inputs, again)

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Score: the results under the own names, and ``synonyms``.

        Empty in all processes but the first.
        """
        own = self._own.evaluate()
        renamed = [evaluator.evaluate() for evaluator in self._renamed]
        found: dict[str, float] = {}
        rows = []
        for task, scores in (own or {}).items():
            for metric, value in scores.items():
                if metric.startswith(_OF_A_CLASS) and metric not in _OF_A_SPLIT:
                    continue
                kept = robustness(value, [other[task][metric] for other in renamed])
                found |= {f"{task}.{metric}.{what}": number for what, number in kept.items()}
                rows.append([task, metric, value, *kept.values()])
        if not rows:
            return OrderedDict()
        table = tabulate(rows, ("", "", "names", *STATISTICS), tablefmt="pipe", floatfmt=".2f")
        logger.info("Scores by names, and by %d indices of synonyms:\n%s", len(renamed), table)
        return OrderedDict({**own, "synonyms": found})


def _plain(word: str) -> str:
    return " ".join(clean_name(word).split())
