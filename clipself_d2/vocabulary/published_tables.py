"""Text embeddings in the files of other projects."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_d2.clip.weights.reading import read_weights_file
from clipself_d2.vocabulary.embeddings import BACKGROUND, TextEmbeddings
from clipself_d2.vocabulary.templates import clean_name
from clipself_d2.vocabulary.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_SHOWN_NAMES = 5


def read_published_embeddings(
    path: str | Path, vocabulary: Vocabulary, *, clip: str, templates: str = "", weights: str = ""
) -> TextEmbeddings:
    """Read another project's embeddings of a vocabulary.

    Args:
        path: A file of ``torch.save`` or ``numpy.save`` with either a vector for each class name,
            "background" among them or not, as F-ViT's; or a bare (N, D) table, as RegionCLIP's and
            CLIPSelf's, whose rows are taken to be in the order of the vocabulary, with one row more
            for the background or not.
        vocabulary: The classes wanted; a file of named vectors may hold more.
        clip: Name of the CLIP that the vectors come from.
        templates: Name of its prompt set, kept for the record.
        weights: Its weights, kept for the record.

    Returns:
        The embeddings, scaled to unit norm; synonyms of the vocabulary are dropped, because the
        file's vectors are not of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another kind, lacks a class, or holds a zero or infinite vector.
    """
    content = _read(Path(path))
    if isinstance(content, Mapping):
        rows, background = _pick(content, vocabulary, path)
    else:
        rows, background = _split(content, vocabulary, path)
    table = rows if background is None else torch.cat([rows, background[None]])
    norms = table.norm(dim=1)
    # Written so that NaN fails.
    if not ((norms > 0) & norms.isfinite()).all():
        raise ValueError(f"{path} holds a vector that is zero or not finite")
    return TextEmbeddings(
        vocabulary=Vocabulary(vocabulary.names, vocabulary.base_mask, vocabulary.frequency),
        embeddings_KD=F.normalize(rows, dim=1),
        background_D=None if background is None else F.normalize(background, dim=0),
        clip=clip,
        templates=templates,
        weights=weights,
    )


def _read(path: Path) -> Mapping[str, Tensor] | Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"embedding file {path} does not exist")
    content: object
    try:
        if path.suffix == ".npy":
            content = torch.as_tensor(np.load(path, allow_pickle=False))
        else:
            content = read_weights_file(path)
    except (EOFError, OSError, TypeError, ValueError) as error:
        # What numpy says goes on with advice to run the file's code.
        reason = "it is cut short or holds objects" if path.suffix == ".npy" else str(error)
        raise ValueError(f"embedding file {path} cannot be read as tensors: {reason}") from error
    if isinstance(content, np.ndarray):
        content = torch.as_tensor(content)
    if isinstance(content, Tensor) and content.ndim == 2 and content.numel():
        return content.float()
    if isinstance(content, Mapping):
        vectors = {
            str(key): torch.as_tensor(value).float().flatten()
            for key, value in content.items()
            if isinstance(value, Tensor | np.ndarray)
        }
        widths = {len(vector) for vector in vectors.values()}
        if len(vectors) == len(content) and len(widths) == 1:
            return vectors
    found = f"a {type(content).__name__}"
    if isinstance(content, Tensor):
        found = f"a tensor of shape {tuple(content.shape)}"
    raise ValueError(
        f"embedding file {path} holds {found}; it is read if it holds class names with one vector "
        "each, all of one width, or a table (classes, width)"
    )


def _pick(
    vectors: Mapping[str, Tensor], vocabulary: Vocabulary, path: str | Path
) -> tuple[Tensor, Tensor | None]:
    # Of names that read alike the first wins, as later entries of a dict overwrite.
    spoken = {clean_name(name): vector for name, vector in reversed(list(vectors.items()))}
    found = {name: vectors.get(name, spoken.get(clean_name(name))) for name in vocabulary.names}
    missing = [name for name, vector in found.items() if vector is None]
    if missing:
        raise ValueError(
            f"{path} has {len(vectors)} names but not {len(missing)} of the vocabulary's "
            f"{vocabulary.num_classes}, such as {missing[:_SHOWN_NAMES]}; check the vocabulary"
        )
    rows = torch.stack([vector for vector in found.values() if vector is not None])
    unused = len(vectors) - len(found) - (BACKGROUND in vectors)
    logger.info("%s: %d vectors taken, %d others passed over", path, len(rows), max(unused, 0))
    return rows, vectors.get(BACKGROUND)


def _split(table: Tensor, vocabulary: Vocabulary, path: str | Path) -> tuple[Tensor, Tensor | None]:
    count = vocabulary.num_classes
    if len(table) not in (count, count + 1):
        raise ValueError(
            f"{path} is a table of {len(table)} rows without names; {count} rows are expected for "
            "the vocabulary, or one more for the background"
        )
    return table[:count], table[count] if len(table) > count else None
