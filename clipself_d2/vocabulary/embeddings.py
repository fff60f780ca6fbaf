"""Text embeddings of a vocabulary: built, cached, checked, and put into a model."""

import hashlib
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.clip import load_clip
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.vocabulary.templates import fill_templates, get_templates
from clipself_d2.vocabulary.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

BACKGROUND = "background"
_UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError)


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
        weights: Its pretrained tag or file name.
        templates: Name of the prompt set.
    """

    vocabulary: Vocabulary
    embeddings_KD: Tensor
    background_D: Tensor | None
    clip: str
    weights: str
    templates: str

    @property
    def embed_dim(self) -> int:
        """Width D."""
        return int(self.embeddings_KD.shape[1])

    def check(self, embed_dim: int) -> None:
        """Refuse embeddings of another width.

        Args:
            embed_dim: Width of the tower's projection.

        Raises:
            ValueError: If the widths differ.
        """
        if self.embed_dim != embed_dim:
            raise ValueError(
                f"text embeddings of {self.clip} are {self.embed_dim}-d but the tower projects "
                f"to {embed_dim}-d; set MODEL.CLIP.NAME to the CLIP they come from, or empty "
                "MODEL.VOCABULARY.EMBEDDINGS to have them built"
            )

    @classmethod
    def build(
        cls,
        encoder: SentenceEncoder,
        vocabulary: Vocabulary,
        *,
        clip: str,
        weights: str,
        templates: str,
    ) -> "TextEmbeddings":
        """Prompt, encode and average every class.

        Args:
            encoder: Text tower.
            vocabulary: The classes.
            clip: Name of the CLIP, kept for the record.
            weights: Its weights, kept for the record.
            templates: Name of a prompt set.

        Returns:
            The embeddings; each is the renormalised mean of unit sentence embeddings.

        Reference: prompt ensembling of CLIP, arXiv 2103.00020, section 3.1.4.
        """
        prompt_set = get_templates(templates)
        names = [*vocabulary.names, BACKGROUND]
        sentences = [text for name in names for text in fill_templates(name, prompt_set)]
        encoded = F.normalize(encoder.encode(sentences).float(), dim=1)
        mean = encoded.view(len(names), len(prompt_set), -1).mean(1)
        unit = F.normalize(mean, dim=1)
        return cls(vocabulary, unit[:-1], unit[-1], clip, weights, templates)

    def save(self, path: str | Path) -> None:
        """Write the embeddings; the file appears whole or not at all.

        Args:
            path: File to write.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        content = {
            "names": list(self.vocabulary.names),
            "base_mask": list(self.vocabulary.base_mask),
            "frequency": self.vocabulary.frequency and list(self.vocabulary.frequency),
            "synonyms": [list(synonyms) for synonyms in self.vocabulary.synonyms],
            "embeddings": self.embeddings_KD.clone(),
            "background": None if self.background_D is None else self.background_D.clone(),
            "clip": self.clip,
            "weights": self.weights,
            "templates": self.templates,
        }
        torch.save(content, partial)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> "TextEmbeddings":
        """Read embeddings that ``save`` wrote.

        Args:
            path: File.

        Returns:
            The embeddings.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is damaged or of another kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"text embeddings {path} do not exist")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            frequency = content["frequency"]
            vocabulary = Vocabulary(
                tuple(content["names"]),
                tuple(content["base_mask"]),
                None if frequency is None else tuple(frequency),
                tuple(tuple(synonyms) for synonyms in content["synonyms"]),
            )
            embeddings = content["embeddings"].float()
            made_from = (content["clip"], content["weights"], content["templates"])
            background = content["background"]
        except _UNREADABLE as error:
            raise ValueError(
                f"text embeddings {path} are damaged or of another kind ({error}); delete the "
                "file, or rebuild it"
            ) from error
        if embeddings.ndim != 2 or len(embeddings) != vocabulary.num_classes:
            raise ValueError(
                f"text embeddings {path} have shape {tuple(embeddings.shape)} for "
                f"{vocabulary.num_classes} classes; rebuild the file"
            )
        return cls(vocabulary, embeddings, background, *made_from)

    @classmethod
    def load_or_build(
        cls,
        vocabulary: Vocabulary,
        *,
        clip: str,
        weights: str | None,
        templates: str,
        cache_dir: str | Path | None = None,
    ) -> "TextEmbeddings":
        """Take embeddings from a cache folder, or build them with the CLIP and keep them there.

        Args:
            vocabulary: The classes.
            clip: Name of the CLIP.
            weights: Pretrained tag or file; None for random weights, which are never cached.
            templates: Name of a prompt set.
            cache_dir: Folder of the cache, or None.

        Returns:
            Embeddings whose vocabulary is the one asked for.
        """
        path = None
        if cache_dir is not None and weights is not None:
            stamp = _weights_stamp(weights)
            key = "\n".join([vocabulary.fingerprint, clip, stamp, templates])
            digest = hashlib.sha256(key.encode()).hexdigest()[:20]
            path = Path(cache_dir) / f"text_{clip}_{digest}.pt"
        if path is not None and path.is_file():
            try:
                cached = cls.load(path)
            except ValueError as error:
                logger.warning("%s; they are built again", error)
            else:
                made_from = (cached.clip, cached.weights, cached.templates)
                return cls(vocabulary, cached.embeddings_KD, cached.background_D, *made_from)
        encoder = load_clip(clip, weights).text
        built = cls.build(
            encoder, vocabulary, clip=clip, weights=weights or "random", templates=templates
        )
        if path is not None:
            built.save(path)
        return built


def _weights_stamp(weights: str) -> str:
    """A tag as it is; a file with its size and time, so that a new file is not an old cache."""
    path = Path(weights)
    if not path.is_file():
        return weights
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"


@contextmanager
def use_vocabulary(model: nn.Module, embeddings: TextEmbeddings) -> Iterator[None]:
    """Give every text classifier of a model other classes for the time of a with block.

    Args:
        model: Any module.
        embeddings: The classes and their embeddings.

    Yields:
        Nothing; the former classes are back afterwards, also after an error.

    Raises:
        ValueError: If the model has no text classifier, or the width is not the model's.
    """
    classifiers = [module for module in model.modules() if isinstance(module, TextClassifier)]
    if not classifiers:
        raise ValueError(f"{type(model).__name__} has no text classifier to give classes to")
    for classifier in classifiers:
        embeddings.check(classifier.embed_dim)
    former = [classifier.get_embeddings() for classifier in classifiers]
    base_mask = torch.tensor(embeddings.vocabulary.base_mask)
    try:
        for classifier in classifiers:
            classifier.set_embeddings(
                embeddings.embeddings_KD, base_mask, embeddings.background_D
            )
        yield
    finally:
        for classifier, state in zip(classifiers, former, strict=True):
            classifier.set_embeddings(*state)
