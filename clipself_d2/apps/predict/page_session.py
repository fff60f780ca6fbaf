"""Questions of the web page's visitors, and what the models say."""

import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from clipself_d2.apps.files.text_embeddings import resolve_vocabulary
from clipself_d2.apps.predict.encoded import EncodedPicture, dense_map
from clipself_d2.apps.predict.page_results import PictureResult, read_output
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.prompts import ClassPrompt, PromptSet
from clipself_d2.apps.predict.refer_demo import META_ARCHITECTURE, ReferringPredictor
from clipself_d2.apps.predict.slices import SlicePlan
from clipself_d2.data.pictures import read_picture

# What a visitor may ask for at once.
MOST_PICTURES, MOST_WORDS, LONGEST_WORD = 8, 100, 80
MOST_PIXELS = 25_000_000
# Detections below this are not kept for the slider.
LEAST_SCORE = 0.02
# The word list of the prompt-free mode.
BUILT_IN_LIST = "lvis_v1"
_EXAMPLES, _EXAMPLE_WORDS = 4, 4


@dataclass(frozen=True)
class Question:
    """What a visitor asks.

    Attributes:
        files: Pictures.
        words: Classes, each with synonyms behind semicolons.
        negative: Words scored and never reported.
        reference_name: Name of the class by example.
        references: Its pictures.
        every_word: Whether the built-in list is looked for instead of words.
        slice_size: Side of slices of larger pictures, px; 0: none.
        expression: Sentence for a CRIS.
    """

    files: Sequence[str] = ()
    words: Sequence[str] = ()
    negative: Sequence[str] = ()
    reference_name: str = ""
    references: Sequence[str] = ()
    every_word: bool = False
    slice_size: int = 0
    expression: str = ""


@dataclass(frozen=True)
class Answer:
    """What the page shows.

    Attributes:
        results: Of the pictures.
        names: Class names, by number.
        notes: Warnings.
        key: Tells it from all others.
    """

    results: list[PictureResult] = field(default_factory=list)
    names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


class Models:
    """The models behind a page.

    Args:
        cfg: Of a detector, a segmenting model or a CRIS; MODEL.WEIGHTS is the model.
        referring: Of a CRIS beside the first; None: none.
    """

    def __init__(self, cfg: CfgNode, referring: CfgNode | None = None) -> None:
        self.cfg = cfg
        is_cris = cfg.MODEL.META_ARCHITECTURE == META_ARCHITECTURE
        self.predictor = None if is_cris else OpenVocabPredictor(cfg, min_score=LEAST_SCORE)
        given = cfg if is_cris else referring
        self.referring = None if given is None else ReferringPredictor(given)

    @property
    def tabs(self) -> list[str]:
        """What the models give: boxes, masks, panoptic, semantic, heat map, expression."""
        tabs: list[str] = []
        if self.predictor is not None:
            kind = self.cfg.MODEL.META_ARCHITECTURE
            if kind == "OpenVocabPanoptic":
                tabs += ["panoptic", "semantic"]
            if kind == "CATSegmentor":
                tabs += ["semantic"]
            else:
                tabs += ["boxes"]
                if self.cfg.MODEL.MASK_ON or kind == "OpenVocabPanoptic":
                    tabs += ["masks"]
            tabs += ["heat map"]
        return tabs + ["expression"] * (self.referring is not None)

    def answer(self, question: Question) -> Answer:
        """Ask the models; a ValueError has a sentence for the visitor."""
        check_question(question)
        if self.predictor is None and not question.expression.strip():
            raise ValueError('there is no expression; write one, such as "the dog on the left"')
        with collected_warnings() as notes:
            images = [np.asarray(read_picture(path)) for path in question.files]
            for path, image in zip(question.files, images, strict=True):
                if image.shape[0] * image.shape[1] > MOST_PIXELS:
                    raise ValueError(
                        f"{Path(path).name} has {image.shape[1]} x {image.shape[0]} px; at most "
                        f"{MOST_PIXELS // 1_000_000} megapixels are looked at"
                    )
            results, names = self._detect(question, images)
            if self.referring is not None and question.expression.strip():
                results = [self._refer(self.referring, result, question) for result in results]
                names = names or (question.expression,)
        return Answer(results, names, notes)

    def _detect(
        self, question: Question, images: Sequence[np.ndarray]
    ) -> tuple[list[PictureResult], tuple[str, ...]]:
        files = [Path(path).name for path in question.files]
        wants_words = question.words or question.references or question.every_word
        if self.predictor is None or (question.expression.strip() and not wants_words):
            return [PictureResult(*pair) for pair in zip(files, images, strict=True)], ()
        prompts = self._prompts(self.predictor, question)
        plan = SlicePlan(question.slice_size) if question.slice_size else None
        pictures = [EncodedPicture(*pair) for pair in zip(images, files, strict=True)]
        outputs = self.predictor.detect_all(pictures, prompts=prompts, slices=plan)
        results = [
            read_output(
                picture.name, picture.image, output, self._heat(self.predictor, picture, prompts)
            )
            for picture, output in zip(pictures, outputs, strict=True)
        ]
        return results, self.predictor.names if prompts is None else prompts.names

    def _prompts(self, predictor: OpenVocabPredictor, question: Question) -> PromptSet | None:
        if question.every_word:
            words = resolve_vocabulary(BUILT_IN_LIST)
            return predictor.make_prompts(words, question.negative)
        prompts: list[str | ClassPrompt] = [*question.words]
        if question.references:
            name = question.reference_name.strip() or "like the example"
            words_too = name in prompts
            prompts = [word for word in prompts if word != name]
            prompts.append(ClassPrompt(name, question.references, words=words_too))
        return predictor.make_prompts(prompts, question.negative)

    @staticmethod
    def _heat(
        predictor: OpenVocabPredictor, picture: EncodedPicture, prompts: PromptSet | None
    ) -> Tensor | None:
        """Cosines of the cells that cover the picture to every class."""
        if prompts is None or hasattr(predictor.model, "encode_views"):
            return None
        dense, stride = dense_map(predictor.model, picture.features)
        height, width = predictor.prepare(picture)["image"].shape[1:]
        rows, columns = (max(1, round(side / stride)) for side in (height, width))
        words = prompts.embeddings.embeddings_KD[: prompts.num_reported].to(dense)
        return torch.einsum("dhw,kd->khw", dense[0, :, :rows, :columns], words).cpu()

    @staticmethod
    def _refer(
        predictor: ReferringPredictor, result: PictureResult, question: Question
    ) -> PictureResult:
        (output,) = predictor(result.image, [question.expression])
        probability = output["ref_mask_prob"].cpu().numpy()
        return replace(result, expression=question.expression, probability=probability)


def check_question(question: Question) -> None:
    """Refuse what is too much, in a sentence for the visitor."""
    if not question.files:
        raise ValueError("there is no picture; upload one")
    if len(question.files) > MOST_PICTURES:
        raise ValueError(
            f"there are {len(question.files)} pictures; at most {MOST_PICTURES} at once"
        )
    words = [*question.words, *question.negative]
    if len(words) > MOST_WORDS:
        raise ValueError(f"there are {len(words)} words; at most {MOST_WORDS} at once")
    long = [text for text in [*words, question.reference_name] if len(text) > LONGEST_WORD]
    if long:
        raise ValueError(f"{long[0][:30]!r}... is longer than {LONGEST_WORD} letters; shorten it")


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect what the package warns of in this thread.

    Yields a list that is filled while the block runs.
    """
    notes: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and record.getMessage() not in notes:
                notes.append(record.getMessage())

    collector = Collector(logging.WARNING)
    package = logging.getLogger("clipself_d2")
    package.addHandler(collector)
    try:
        yield notes
    finally:
        package.removeHandler(collector)


def find_examples(cfg: CfgNode) -> list[tuple[str, list[str]]]:
    """Take pictures of the test set, and words for what is in them, as examples.

    There are none where the data set is not on this machine.
    """
    name = next(iter(cfg.DATASETS.TEST), "")
    try:
        records = DatasetCatalog.get(name)[: 10 * _EXAMPLES]
    except (KeyError, OSError, ValueError):
        return []
    classes = MetadataCatalog.get(name).get("thing_classes") or []
    examples = []
    for record in records:
        marks = record.get("annotations") or record.get("segments_info") or []
        found = dict.fromkeys(int(mark["category_id"]) for mark in marks)
        words = [classes[number] for number in found if number < len(classes)]
        if words and Path(record["file_name"]).is_file():
            examples.append((record["file_name"], words[:_EXAMPLE_WORDS]))
    return examples[:_EXAMPLES]
