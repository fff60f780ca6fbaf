"""Concept pools from caption corpora, as a file for MODEL.REGIONCLIP.CONCEPTS."""

import logging
import os
from pathlib import Path

from clipself_d2.data.datasets.captions import read_captions
from clipself_d2.vocabulary.concepts import ConceptPool
from clipself_d2.vocabulary.noun_chunks import load_parser

logger = logging.getLogger(__name__)


def build_concept_pool(
    captions: str, output: str | Path, *, parser: str = "rules", min_count: int = 100
) -> ConceptPool:
    """Count the nouns of a corpus and write those that are frequent.

    Args:
        captions: ``emoji``, COCO's captions json, a ``.tsv`` or ``.csv`` list, or a text file with
            one sentence a line.
        output: Text file of ``noun,count`` lines, the most frequent first.
        parser: "rules" or "spacy".
        min_count: Least number of occurrences kept.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If the captions are missing.
        ValueError: If they cannot be read, the parser is not there, or no noun is frequent enough.
    """
    if Path(output).is_dir():
        raise ValueError(f"--output {output} is a folder; name a file in it")
    parse = load_parser(parser)
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    sentences = read_captions(captions, root)
    logger.info("%d captions of %s", len(sentences), captions)
    pool = ConceptPool.count(sentences, parse, min_count=min_count)
    pool.save(output)
    return pool
