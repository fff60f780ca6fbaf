"""Time and mIoU of a trained CAT-Seg on emoji scenes over the number of words it is asked for.

Legend: T classes, D joint embedding.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from tabulate import tabulate

from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.evaluation.semantic import SemanticEvaluator
from clipself_d2.parts.label_maps import read_label_map
from clipself_d2.parts.text_embeddings import read_text_embeddings, semantic_vocabulary
from clipself_d2.segmentation import CATSegmentor
from clipself_d2.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

DATASET = "emoji_ov_sem_seg_val"
_IGNORE_LABEL = 255


def list_words(own: Sequence[str], count: int) -> list[str]:
    """Choose ``count`` of a data set's own classes, or all and names of LVIS beside them.

    A shorter list is the beginning of a longer one.
    """
    shuffled = [own[number] for number in np.random.default_rng(0).permutation(len(own))]
    others = [str(entry["synonyms"][0]).replace("_", " ") for entry in LVIS_CATEGORIES]
    words = list(dict.fromkeys([*shuffled, *others]))
    if count > len(words):
        raise ValueError(f"--words is {count}; there are {len(words)} different words to ask for")
    return words[:count]


@torch.no_grad()
def measure_words(
    run: Path,
    counts: Sequence[int],
    list_lengths: Sequence[int] = (0, 32, 8),
    num_pictures: int = 100,
) -> str:
    """Segment the validation scenes for lists of words, each picture encoded once for all.

    Pixels of classes that a list leaves out are ignored; words of LVIS beside the data set's are in
    no truth, so that every pixel given to one is wrong.

    Args:
        run: Folder of a training of CAT-Seg.
        counts: Numbers of words.
        list_lengths: Most classes aggregated at once (MODEL.CAT_SEG.SHORTLIST); 0 takes the
            config's PAD_LEN.
        num_pictures: Pictures that are scored.

    Returns:
        Markdown table: processor time of scoring a picture, without its encoding, and mIoU in
        percent of the classes in the truth.
    """
    predictor = OpenVocabPredictor(run / "config.yaml", run / "model_final.pth")
    model = predictor.model
    if not isinstance(model, CATSegmentor):
        raise ValueError(f"{run} holds a {type(model).__name__}; name the run of a CATSegmentor")
    own = semantic_vocabulary(DATASET).names
    records = DatasetCatalog.get(DATASET)[:num_pictures]
    cases = []
    for count in counts:
        words = list_words(own, count)
        vocabulary = Vocabulary.from_names(words)
        embeddings = read_text_embeddings(predictor.cfg, vocabulary, same_names=False)
        text_TD = model.embed_vocabulary(embeddings).embeddings_KD
        limits = {min(each or model.aggregator.list_length, count) for each in list_lengths}
        cases += [
            (count, limit, text_TD, _evaluator(own, words, records)) for limit in sorted(limits)
        ]
    seconds = [0.0] * len(cases)
    for record in records:
        picture = predictor.prepare(predictor.encode(record["file_name"]))
        features = model.encode_views(picture["image"])
        size = (picture["height"], picture["width"])
        for number, (_, length, text_TD, evaluator) in enumerate(cases):
            model.options = dataclasses.replace(model.options, shortlist=length)
            begun = time.process_time()
            scores = model.segment(features, size, text_TD)
            seconds[number] += time.process_time() - begun
            evaluator.process([record], [{"sem_seg": scores}])
    rows = []
    for (count, length, _, evaluator), spent in zip(cases, seconds, strict=True):
        scored = evaluator.evaluate()
        assert scored is not None, "one process evaluates"
        miou = scored["sem_seg"]["mIoU"]
        rows.append([count, length, f"{1000 * spent / len(records):.0f}", f"{miou:.1f}"])
    return tabulate(rows, headers=["words", "aggregated", "ms", "mIoU"], tablefmt="github")


def _evaluator(
    own: Sequence[str], words: Sequence[str], records: Sequence[dict[str, object]]
) -> SemanticEvaluator:
    """Score the classes among the words; labels of the others are ignored."""
    places = {word: place for place, word in enumerate(words)}
    # A list begins with the data set's own classes, so that their places stay below the label.
    number = np.full(_IGNORE_LABEL + 1, _IGNORE_LABEL, np.int64)
    number[: len(own)] = [places.get(name, _IGNORE_LABEL) for name in own]
    return SemanticEvaluator(
        records=records,
        read_truth=lambda record: number[read_label_map(record["sem_seg_file_name"])],
        class_names=words,
        ignore_label=_IGNORE_LABEL,
        distributed=False,
    )
