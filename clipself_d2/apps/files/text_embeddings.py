"""Files of text embeddings, built with a CLIP or taken over from other projects."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor
from tqdm import tqdm

from clipself_d2.apps.analysis.tower_spec import choose_device
from clipself_d2.clip import TextEncoder
from clipself_d2.clip.registry import embed_dim, find_weights, pretrained_tags
from clipself_d2.data.datasets.lvis_ov import lvis_metadata
from clipself_d2.parts.text_embeddings import dataset_vocabulary, warn_of_doubtful_names
from clipself_d2.parts.words import did_you_mean
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, get_templates
from clipself_d2.vocabulary.embeddings import SentenceEncoder
from clipself_d2.vocabulary.published_tables import read_published_embeddings
from clipself_d2.vocabulary.templates import template_name
from clipself_d2_cli.flags import user_path

logger = logging.getLogger(__name__)

BATCH_SIZE = 256
_EMOJI_DATASET = "emoji_ov_val"


class EmbeddingReport(NamedTuple):
    """What was written, after how many sentences and seconds.

    Without prompts, ``num_templates`` and ``num_sentences`` are 0.
    """

    embeddings: TextEmbeddings
    output: Path
    num_templates: int
    num_sentences: int
    seconds: float


def resolve_vocabulary(
    name: str, choices: str = "lvis_v1, coco, emoji, a registered data set such as coco_ov_val"
) -> Vocabulary:
    """Turn a name of the command line into classes.

    Args:
        name: ``lvis_v1`` (1203 classes under the official names), ``coco`` (80 classes), ``emoji``,
            a registered data set, or a file as of ``Vocabulary.from_file``.
        choices: What an error names beside files.
    """
    if name == "lvis_v1":
        return Vocabulary.from_metadata(SimpleNamespace(**lvis_metadata()))
    if name == "coco":
        return Vocabulary.from_names([row["name"] for row in COCO_CATEGORIES if row["isthing"]])
    if name == "emoji":
        return dataset_vocabulary(_EMOJI_DATASET, "--vocabulary")
    if name in DatasetCatalog.list() or name in MetadataCatalog.list():
        return dataset_vocabulary(name, "--vocabulary")
    path = user_path(name)
    if path.suffix in (".txt", ".json") or path.is_file():
        return Vocabulary.from_file(path)
    raise ValueError(
        f"--vocabulary is {name!r}; it is {choices}, or a .txt or .json file of names"
        f"{did_you_mean(name, DatasetCatalog.list())}"
    )


def build_embedding_file(
    vocabulary: Vocabulary,
    output: str | Path,
    *,
    clip: str,
    weights: str = "",
    templates: str = "vild",
    cache_dir: str = "",
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    force: bool = False,
) -> EmbeddingReport:
    """Prompt and encode a vocabulary into a file for MODEL.VOCABULARY.EMBEDDINGS.

    Args:
        vocabulary: The classes.
        output: File to write; one that was made of the same is kept.
        clip: Model name as open_clip knows it.
        weights: Pretrained tag, ``hf-hub:`` id or file; "" where the model has one tag only.
        templates: Name of a prompt set.
        cache_dir: Folder of cached embeddings; "" for none.
        device: Where the text tower runs.
        batch_size: Sentences at a time.
        force: Whether a file of other embeddings may be overwritten.
    """
    begin = time.perf_counter()
    warn_of_doubtful_names(vocabulary)
    output, templates = Path(output), template_name(templates)
    place = choose_device(device)
    embed_dim(clip)
    if not weights:
        tags = pretrained_tags(clip)
        if len(tags) != 1:
            choice = ", ".join(tags) or "a file"
            raise ValueError(
                f"{clip} has {len(tags)} pretrained weights; choose with --weights: {choice}"
            )
        weights = tags[0]
    _, file = find_weights(clip, weights)
    encoded: list[int] = []

    def wrap(encoder: SentenceEncoder) -> SentenceEncoder:
        if not isinstance(encoder, TextEncoder):
            return encoder
        return _ShownEncoder(encoder, batch_size, encoded)

    built = _made_earlier(output, vocabulary, clip, weights, file, templates)
    if built is None:
        _check_output(output, force)
        built = TextEmbeddings.load_or_build(
            vocabulary,
            clip=clip,
            weights=weights,
            templates=templates,
            cache_dir=cache_dir or None,
            device=place,
            wrap=wrap,
        )
        built.save(output)
    return EmbeddingReport(
        built, output, len(get_templates(templates)), sum(encoded), time.perf_counter() - begin
    )


def convert_embedding_file(
    source: str | Path,
    vocabulary: Vocabulary,
    output: str | Path,
    *,
    clip: str,
    weights: str = "",
    templates: str = "",
    force: bool = False,
) -> EmbeddingReport:
    """Take over another project's embeddings into a file for MODEL.VOCABULARY.EMBEDDINGS.

    Args:
        source: File as of ``read_published_embeddings``.
        vocabulary: The classes wanted.
        output: File to write.
        clip: Name of the CLIP that the vectors come from.
        weights: Its weights, kept for the record.
        templates: Its prompt set, kept for the record; "" where not known.
        force: Whether ``output`` may exist.
    """
    begin = time.perf_counter()
    output, width = Path(output), embed_dim(clip)
    _check_output(output, force)
    read = read_published_embeddings(
        source,
        vocabulary,
        clip=clip,
        templates=template_name(templates) if templates else "",
        weights=weights,
    )
    if read.embed_dim != width:
        raise ValueError(
            f"{source} holds {read.embed_dim}-d vectors but {clip} embeds into {width} dimensions; "
            "give the CLIP they come from as --clip"
        )
    read.save(output)
    return EmbeddingReport(read, output, 0, 0, time.perf_counter() - begin)


class _ShownEncoder:
    """Encodes with a progress bar on stderr and counts the sentences."""

    def __init__(self, encoder: TextEncoder, batch_size: int, encoded: list[int]) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._encoded = encoded

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return (T, D) unit-norm embeddings."""
        self._encoded.append(len(texts))
        with tqdm(total=len(texts), unit="prompt", desc="text embeddings", mininterval=1) as bar:
            return self._encoder.encode(texts, self._batch_size, bar.update)


def _made_earlier(
    output: Path,
    vocabulary: Vocabulary,
    clip: str,
    weights: str,
    file: Path | None,
    templates: str,
) -> TextEmbeddings | None:
    """Read the output if it holds these very embeddings; weights in a file must be older."""
    if not output.is_file():
        return None
    try:
        found = TextEmbeddings.load(output)
    except ValueError:
        return None
    same = (found.vocabulary, found.clip, found.weights, found.templates) == (
        vocabulary,
        clip,
        weights,
        templates,
    )
    older = file is None or file.stat().st_mtime_ns < output.stat().st_mtime_ns
    return found if same and older and found.background_D is not None else None


def _check_output(output: Path, force: bool) -> None:
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file in it")
    if output.exists() and not force:
        raise ValueError(
            f"--output {output} exists and is of something else; give --force to overwrite it"
        )
