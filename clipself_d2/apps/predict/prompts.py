"""What a detector is asked for: words, reference pictures, negative words, thresholds.

Legend: K classes, D joint embedding.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Instances, pairwise_iou
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipself_d2.clip import TextEncoder
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

logger = logging.getLogger(__name__)

# Of unseen words, a warning shows so many, and of each so many characters.
_MOST_WORDS, _SHOWN = 10, 40
# A box of a class goes where one of a negative word overlaps it so far and scores higher.
_SAME_PLACE = 0.5
_FORMAT = "clipself_d2 classes 1"
_VOCABULARY_KEYS = ("names", "base_mask", "synonyms", "thing_mask")
_CLIP_KEYS = ("clip", "weights", "templates")


@dataclass(frozen=True)
class ClassPrompt:
    """A class with more to it than words.

    Attributes:
        name: Its name, with synonyms behind semicolons: "police car;squad car".
        references: Pictures of it, or pairs of a picture and a box (XYXY px). The mean of their
            crops' embeddings is averaged with that of the words.
        words: Whether the words are prompted too; False leaves the class to its references, for
            names that mean nothing to CLIP.
        min_score: Least score reported, in [0, 1]; None is the predictor's.
    """

    name: str
    references: Sequence[Any] = ()
    words: bool = True
    min_score: float | None = None


@dataclass(frozen=True)
class PromptSet:
    """Classes that a model is asked for, with their embeddings; made by a predictor.

    Attributes:
        embeddings: Reported classes first, negative words behind them.
        min_scores: Least score of each reported class; None is the predictor's.
        references: Number of reference crops behind each reported class.
    """

    embeddings: TextEmbeddings
    min_scores: tuple[float | None, ...]
    references: tuple[int, ...] = field(default=())

    @property
    def num_reported(self) -> int:
        """Number of classes that results have."""
        return len(self.min_scores)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes that results have."""
        return self.embeddings.vocabulary.names[: self.num_reported]

    def report(self, output: dict[str, Any], min_score: float = 0.0) -> dict[str, Any]:
        """Leave out of a model's output what scores too low or belongs to a negative word.

        A pixel of ``sem_seg`` whose best word is negative scores 0 everywhere. ``min_score`` is
        that of classes that have none of their own.
        """
        count = self.num_reported
        result = dict(output)
        if "instances" in output:
            result["instances"] = self._report_boxes(output["instances"], min_score)
        if "sem_seg" in output and len(output["sem_seg"]) > count:
            scores = output["sem_seg"]
            result["sem_seg"] = scores[:count] * (scores.argmax(0) < count)
        if "panoptic_seg" in output:
            ids, rows = output["panoptic_seg"]
            left = [row for row in rows if row["category_id"] < count]
            inside = torch.isin(ids, torch.tensor([row["id"] for row in left]).to(ids))
            result["panoptic_seg"] = (torch.where(inside, ids, 0), left)
        return result

    def _report_boxes(self, found: Instances, min_score: float) -> Instances:
        negative = found.pred_classes >= self.num_reported
        least = [min_score if score is None else score for score in self.min_scores]
        wanted, bad = found[~negative], found[negative]
        keep = wanted.scores >= torch.tensor(least).to(wanted.scores)[wanted.pred_classes]
        if len(bad):
            overlap = pairwise_iou(wanted.pred_boxes, bad.pred_boxes) > _SAME_PLACE
            # (wanted, bad): a negative word that overlaps and scores higher.
            keep &= ~(overlap & (bad.scores[None] > wanted.scores[:, None])).any(1)
        return wanted[keep]

    def check(self, clip: str, weights: str) -> None:
        """Refuse a set of another CLIP than a detector's; of other weights it is warned."""
        made = self.embeddings
        if made.clip != clip:
            raise ValueError(
                f"this set of classes was made with {made.clip}, but MODEL.CLIP.NAME is {clip}; "
                "make it anew with this detector"
            )
        if Path(made.weights).name != Path(weights).name:
            message = "this set of classes was made with %s, but MODEL.CLIP.PRETRAINED is %s"
            logger.warning(message, made.weights, weights)

    def save(self, path: str | Path) -> None:
        """Write the set to one file, a safetensors file without any code in it."""
        own = self.embeddings
        vocabulary = own.vocabulary
        rows = {
            "embeddings": own.embeddings_KD,
            "background": own.background_D,
            "words": own.words_WD,
        }
        # safetensors takes neither views nor two tensors of one memory.
        tensors = {
            name: part.contiguous().clone() for name, part in rows.items() if part is not None
        }
        content = {
            **{key: getattr(vocabulary, key) for key in _VOCABULARY_KEYS},
            "min_scores": self.min_scores,
            "references": self.references,
            **{key: getattr(own, key) for key in _CLIP_KEYS},
        }
        text = json.dumps(content)
        digest = _digest(text, tensors)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(path), {"format": _FORMAT, "classes": text, "sha256": digest})

    @classmethod
    def load(cls, path: str | Path) -> "PromptSet":
        """Read a set that ``save`` wrote; a ValueError says that it is damaged."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"set of classes {path} does not exist")
        try:
            with safe_open(str(path), framework="pt") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if notes.get("format") != _FORMAT:
                raise ValueError(f"its format is {notes.get('format')!r}")
            if notes["sha256"] != _digest(notes["classes"], tensors):
                raise ValueError("its hash is not that of its content")
            content = json.loads(notes["classes"])
            thing_mask = content["thing_mask"]
            vocabulary = Vocabulary(
                names=tuple(content["names"]),
                base_mask=tuple(content["base_mask"]),
                synonyms=tuple(tuple(group) for group in content["synonyms"]),
                thing_mask=None if thing_mask is None else tuple(thing_mask),
            )
            embeddings = TextEmbeddings(
                vocabulary=vocabulary,
                embeddings_KD=tensors["embeddings"],
                background_D=tensors.get("background"),
                words_WD=tensors.get("words"),
                **{key: content[key] for key in _CLIP_KEYS},
            )
            return cls(embeddings, tuple(content["min_scores"]), tuple(content["references"]))
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"set of classes {path} is damaged or no such file ({error}); save it again"
            ) from error


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def parse_prompts(
    classes: Sequence[str | ClassPrompt],
) -> tuple[Vocabulary, tuple[ClassPrompt, ...]]:
    """Read classes, each an entry of ``parse_classes`` or a prompt, with a prompt for each."""
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(f"classes are a list of texts, got {classes!r:.80}; write [...] around it")
    prompts = tuple(
        entry if isinstance(entry, ClassPrompt) else ClassPrompt(entry) for entry in classes
    )
    for prompt in prompts:
        if prompt.min_score is not None and not 0.0 <= prompt.min_score <= 1.0:
            raise ValueError(
                f"the least score of {prompt.name!r} is {prompt.min_score}; it must be in [0, 1]"
            )
        if not prompt.words and not prompt.references:
            raise ValueError(f"{prompt.name!r} has neither words nor references; give one of them")
    return parse_classes([prompt.name for prompt in prompts]), prompts


def add_negative(vocabulary: Vocabulary, negative: Sequence[str]) -> Vocabulary:
    """Put words behind the classes that are scored and never reported, as base and things."""
    if not negative:
        return vocabulary
    more = parse_classes(negative)
    count, known = more.num_classes, vocabulary.num_classes
    mask = vocabulary.thing_mask
    synonyms = (
        *(vocabulary.synonyms or ((),) * known),
        *(more.synonyms or ((),) * count),
    )
    return Vocabulary(
        (*vocabulary.names, *more.names),
        (*vocabulary.base_mask, *more.base_mask),
        synonyms=synonyms if any(synonyms) else (),
        thing_mask=None if mask is None else (*mask, *(True,) * count),
    )


def parse_classes(entries: Sequence[str]) -> Vocabulary:
    """Turn words into classes, which have the places of the entries.

    An entry is a class; behind semicolons stand its synonyms, whose embeddings are averaged with
    that of the name: "police car;squad car".
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise ValueError(f"classes are a list of texts, got {entries!r:.80}; write [...] around it")
    groups = [_parse_class(entry) for entry in entries]
    if not any(groups):
        raise ValueError('there is no class; give names such as "police car;squad car"')
    if not all(groups):
        raise ValueError(
            f"entry {groups.index([])} of the classes is blank; detections are numbered by the "
            "places of the classes, so name it or drop it"
        )
    synonyms = tuple(
        tuple(word for word in dict.fromkeys(words) if word != name) for name, *words in groups
    )
    names = tuple(words[0] for words in groups)
    return Vocabulary(names, (True,) * len(names), synonyms=synonyms if any(synonyms) else ())


def parse_typed_classes(text: str) -> Vocabulary:
    """Turn a line of text into classes, between commas; a comma may end it."""
    return parse_classes(text.strip().removesuffix(",").split(","))


def _parse_class(entry: object) -> list[str]:
    """Name and synonyms of an entry, nothing of a blank one."""
    if not isinstance(entry, str):
        raise ValueError(f"classes are texts, got {entry!r}")
    return [word.strip() for word in entry.split(";") if word.strip()]


def warn_unseen_words(text: TextEncoder, name: str, words: Sequence[str]) -> None:
    """Warn of words, or of words of sentences, that the embedded CLIP never read."""
    unseen = text.unseen_words(list(dict.fromkeys(words)))
    if unseen:
        shown = ", ".join(word[:_SHOWN] for word in unseen[:_MOST_WORDS])
        more = len(unseen) - _MOST_WORDS
        message = "%s never read the words %s in training; expect noise for them"
        logger.warning(message, name, f"{shown} and {more} more" if more > 0 else shown)
