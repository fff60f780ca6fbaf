"""Text embeddings of a vocabulary: built, cached, checked, and put into a model."""

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_d2.clip import load_clip
from clipself_d2.clip.registry import find_weights
from clipself_d2.clip.weights.reading import read_weights_file
from clipself_d2.vocabulary.templates import fill_templates, get_templates, template_name
from clipself_d2.vocabulary.vocabulary import Vocabulary
from clipself_d2.vocabulary.whole_file import whole_file

logger = logging.getLogger(__name__)

BACKGROUND = "background"
# What reading damaged and foreign files raises.
_UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, TypeError, AttributeError, ValueError)
# What a file name should not have; ids of the Hugging Face hub hold some of it.
_UNFIT = re.compile(r"[^\w.-]+")
# Read at a time to hash a file.
_HASHED_BYTES = 2**24
# Embeddings stored in float16 have norms this close to 1.
_UNIT_TOLERANCE = 1e-2


class SentenceEncoder(Protocol):
    """What turns sentences into embeddings, such as ``clipself_d2.clip.TextEncoder``."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return (T, D) unit-norm float32 embeddings."""


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of a vocabulary and of the background.

    Attributes:
        vocabulary: The classes.
        embeddings_KD: (K, D) float32, unit norm, in the order of ``vocabulary.names``.
        background_D: (D,) unit-norm embedding of the prompted word "background", or None.
        clip: Name of the CLIP they come from.
        templates: Name of the prompt set.
        weights: Pretrained tag or file of that CLIP; empty where not known.
        words_WD: (W, D) float32, unit norm: every name and synonym by itself, in the order of
            ``vocabulary.words``; None where only the classes' means are known.

    Raises:
        ValueError: If shapes disagree or rows have not unit norm.
    """

    vocabulary: Vocabulary
    embeddings_KD: Tensor
    background_D: Tensor | None
    clip: str
    templates: str
    weights: str = ""
    words_WD: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the tensors against the vocabulary."""
        shape = tuple(self.embeddings_KD.shape)
        if len(shape) != 2 or shape[0] != self.vocabulary.num_classes:
            count = self.vocabulary.num_classes
            raise ValueError(f"text embeddings have shape {shape} for {count} classes")
        rows = self.embeddings_KD
        if self.background_D is not None:
            if tuple(self.background_D.shape) != shape[1:]:
                got = tuple(self.background_D.shape)
                raise ValueError(f"the background's embedding is {got}, not {shape[1]}-d")
            rows = torch.cat([rows, self.background_D[None]])
        if self.words_WD is not None:
            count = sum(map(len, self.vocabulary.words))
            if tuple(self.words_WD.shape) != (count, shape[1]):
                got = tuple(self.words_WD.shape)
                raise ValueError(f"the words' embeddings are {got}, not ({count}, {shape[1]})")
            rows = torch.cat([rows, self.words_WD])
        # Written so that NaN fails.
        if not ((rows.norm(dim=1) - 1).abs() <= _UNIT_TOLERANCE).all():
            raise ValueError("text embeddings have rows whose norm is not 1")

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return int(self.embeddings_KD.shape[1])

    def by_word(self) -> tuple[Tensor, Tensor]:
        """Return the words by themselves, for scores that are the best word's.

        (W, D) embeddings and (W,) int64 numbers of their classes; without ``words_WD`` those of the
        classes, a word each.
        """
        if self.words_WD is None:
            return self.embeddings_KD, torch.arange(self.vocabulary.num_classes)
        sizes = torch.tensor([len(group) for group in self.vocabulary.words])
        return self.words_WD, torch.arange(self.vocabulary.num_classes).repeat_interleave(sizes)

    def with_vocabulary(self, vocabulary: Vocabulary) -> "TextEmbeddings":
        """Keep the embeddings; the same names are split otherwise into base and novel."""
        if vocabulary.names != self.vocabulary.names:
            raise ValueError("the vocabularies have other names; build embeddings for each")
        return replace(self, vocabulary=vocabulary)

    def check(self, embed_dim: int) -> None:
        """Raise a ValueError for embeddings of another width than the tower's projection."""
        if self.embed_dim != embed_dim:
            raise ValueError(
                f"text embeddings of {self.clip} are {self.embed_dim}-d but the tower projects "
                f"to {embed_dim}-d; take those of the tower's own CLIP"
            )

    @classmethod
    def build(
        cls,
        encoder: SentenceEncoder,
        vocabulary: Vocabulary,
        *,
        clip: str,
        templates: str,
        weights: str = "",
        background: str | None = BACKGROUND,
    ) -> "TextEmbeddings":
        """Prompt, encode and average every class.

        Args:
            encoder: Text tower.
            vocabulary: The classes; synonyms are averaged with the name.
            clip: Name of the CLIP, kept for the record.
            templates: Name of a prompt set.
            weights: The CLIP's weights, kept for the record.
            background: Word prompted for the background, or None for no background.

        Returns:
            The embeddings; each is the renormalised mean of unit sentence embeddings.

        Reference: prompt ensembling of CLIP, arXiv 2103.00020, section 3.1.4.
        """
        prompt_set = get_templates(templates)
        words = list(vocabulary.words)
        if background is not None:
            words.append((background,))
        groups = [
            [text for word in group for text in fill_templates(word, prompt_set)] for group in words
        ]
        # Classes may share sentences, by their synonyms or because "Cup" and "cup" read alike.
        number = {text: i for i, text in enumerate(dict.fromkeys(itertools.chain(*groups)))}
        encoded = F.normalize(encoder.encode(list(number)).float().cpu(), dim=1)
        means = [encoded[[number[text] for text in group]].mean(0) for group in groups]
        unit = F.normalize(torch.stack(means), dim=1)
        count = vocabulary.num_classes
        by_word = [
            encoded[[number[text] for text in fill_templates(word, prompt_set)]].mean(0)
            for group in vocabulary.words
            for word in group
        ]
        return cls(
            vocabulary=vocabulary,
            embeddings_KD=unit[:count],
            background_D=None if background is None else unit[count],
            clip=clip,
            templates=template_name(templates),
            weights=weights,
            words_WD=F.normalize(torch.stack(by_word), dim=1) if vocabulary.synonyms else None,
        )

    def save(self, path: str | Path) -> None:
        """Write the embeddings; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "names": list(self.vocabulary.names),
            "base_mask": list(self.vocabulary.base_mask),
            "frequency": self.vocabulary.frequency and list(self.vocabulary.frequency),
            "synonyms": [list(synonyms) for synonyms in self.vocabulary.synonyms],
            "fingerprint": self.vocabulary.fingerprint,
            # A view would be written with all of its storage.
            "embeddings": self.embeddings_KD.clone(),
            "background": None if self.background_D is None else self.background_D.clone(),
            "words": None if self.words_WD is None else self.words_WD.clone(),
            "clip": self.clip,
            "templates": self.templates,
            "weights": self.weights,
        }
        with whole_file(path, "wb") as file:
            torch.save(content, file)

    @classmethod
    def load(cls, path: str | Path) -> "TextEmbeddings":
        """Read embeddings that ``save`` wrote.

        A FileNotFoundError or ValueError says that the file is missing, damaged or of another kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"text embeddings {path} do not exist")
        try:
            content = read_weights_file(path)
            if not isinstance(content, dict):
                raise ValueError(f"it holds a {type(content).__name__}")
            frequency, background = content["frequency"], content["background"]
            words = content.get("words")
            vocabulary = Vocabulary(
                names=tuple(content["names"]),
                base_mask=tuple(content["base_mask"]),
                frequency=None if frequency is None else tuple(frequency),
                synonyms=tuple(tuple(synonyms) for synonyms in content["synonyms"]),
            )
            if content["fingerprint"] != vocabulary.fingerprint:
                raise ValueError("the fingerprint is not that of the class names")
            return cls(
                vocabulary=vocabulary,
                embeddings_KD=content["embeddings"].float(),
                background_D=None if background is None else background.float(),
                clip=content["clip"],
                templates=content["templates"],
                weights=content["weights"],
                words_WD=None if words is None else words.float(),
            )
        except _UNREADABLE as error:
            raise ValueError(
                f"text embeddings {path} are damaged or of another kind "
                f"({type(error).__name__}: {str(error)[:200]})"
            ) from error

    @classmethod
    def load_or_build(
        cls,
        vocabulary: Vocabulary,
        *,
        clip: str,
        weights: str | None,
        templates: str,
        cache_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        wrap: Callable[[SentenceEncoder], SentenceEncoder] | None = None,
    ) -> "TextEmbeddings":
        """Take embeddings from a cache folder, or build them with the CLIP and keep them there.

        Args:
            vocabulary: The classes.
            clip: Name of the CLIP.
            weights: Pretrained tag or file; None for random weights, which are never cached.
            templates: Name of a prompt set.
            cache_dir: Folder of the cache, or None.
            device: Where the text tower runs if it is needed; off the CPU in half precision.
            wrap: Called with that tower; what it gives back encodes.

        Returns:
            Embeddings whose vocabulary is the one asked for.
        """
        templates = template_name(templates)
        path = None
        if cache_dir is not None and weights is not None:
            stamp = _weights_stamp(clip, weights)
            # Everything that an embedding depends on; a change of any makes another file.
            key = "\n".join([vocabulary.fingerprint, clip, stamp, templates])
            digest = hashlib.sha256(key.encode()).hexdigest()[:20]
            path = Path(cache_dir).expanduser() / f"text_{_UNFIT.sub('_', clip)}_{digest}.pt"
            cached = _read_cache(path)
            if cached is not None:
                made_for = (cached.vocabulary.fingerprint, cached.clip, cached.templates)
                if made_for == (vocabulary.fingerprint, clip, templates):
                    return cached.with_vocabulary(vocabulary)
                logger.warning("%s is of other classes or another CLIP; it is built again", path)
        encoder: SentenceEncoder = load_clip(clip, weights).text
        place = torch.device(device)
        if place.type != "cpu" and isinstance(encoder, torch.nn.Module):
            encoder.to(place)
        if wrap is not None:
            encoder = wrap(encoder)
        # Half precision on a CPU would be slower.
        with torch.autocast(place.type, torch.float16, enabled=place.type != "cpu"):
            built = cls.build(
                encoder, vocabulary, clip=clip, templates=templates, weights=weights or ""
            )
        if path is not None:
            built.save(path)
            logger.info("%d text embeddings of %s kept in %s", vocabulary.num_classes, clip, path)
        return built


def _read_cache(path: Path) -> TextEmbeddings | None:
    if not path.is_file():
        return None
    try:
        return TextEmbeddings.load(path)
    except ValueError as error:
        logger.warning("cached %s; they are built again", error)
        return None


def _weights_stamp(clip: str, weights: str) -> str:
    """A tag as it is; a file by its content, which neither a copy nor a touched time changes."""
    tag, path = find_weights(clip, weights)
    if path is None or not path.is_file():
        return tag or weights
    stat = path.stat()
    return _content_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _content_digest(path: Path, size: int, time_ns: int) -> str:
    """Hash a file; size and time tell within a process whether that was done already."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
