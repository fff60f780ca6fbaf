"""Concept pools from caption corpora, as a file for MODEL.REGIONCLIP.CONCEPTS."""

import logging
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets.captions import read_captions, shard_caption_records
from clipself_d2.vocabulary.concepts import ConceptPool
from clipself_d2.vocabulary.noun_chunks import load_parser
from clipself_d2_cli.flags import data_root

logger = logging.getLogger(__name__)

# Data sets with captions that are named by where they lie.
_SHARDS, _FILE = "captions_webdataset:", "captions:"


def build_concept_pool(
    captions: str, output: str | Path, *, parser: str = "rules", min_count: int = 100
) -> ConceptPool:
    """Count the nouns of a corpus and write those that are frequent.

    Args:
        captions: ``emoji``, COCO's captions json, a ``.tsv`` or ``.csv`` list, a text file with one
            sentence a line, or a data set with captions as DATASETS.TRAIN names it, whose pictures
            are not read.
        output: Text file of ``noun,count`` lines, the most frequent first.
        parser: "rules" or "spacy".
        min_count: Least number of occurrences kept.
    """
    if Path(output).is_dir():
        raise ValueError(f"--output {output} is a folder; name a file in it")
    parse = load_parser(parser)
    sentences = _read_sentences(captions)
    logger.info("%d captions of %s", len(sentences), captions)
    pool = ConceptPool.count(sentences, parse, min_count=min_count)
    pool.save(output)
    return pool


def _read_sentences(captions: str) -> list[str]:
    root = str(data_root())
    if captions.startswith(_SHARDS):
        records = shard_caption_records(captions.removeprefix(_SHARDS))
        return [str(sentence) for record in records for sentence in record["captions"]]
    if captions.startswith(_FILE):
        return read_captions(captions.removeprefix(_FILE).partition(":")[0], root)
    if captions in DatasetCatalog.list():
        file = MetadataCatalog.get(captions).get("json_file", "")
        if not file:
            raise ValueError(f"--captions {captions} is a data set without captions")
        return read_captions(file, root)
    return read_captions(captions, root)
