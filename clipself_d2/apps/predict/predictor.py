"""Detection with classes given as words, in three lines of Python."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image, ImageOps
from torch import nn

from clipself_d2.apps.predict.detector_source import Config, build_detector
from clipself_d2.data.pictures import read_picture
from clipself_d2.engine.evaluate import warn_unseen_words
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.text_embeddings import read_text_embeddings, training_vocabulary
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

logger = logging.getLogger(__name__)

Picture = np.ndarray | Image.Image | str | Path

# Between a class and its synonyms, as in vocabulary files.
SYNONYM_SEPARATOR = ";"


def parse_classes(entries: Sequence[str]) -> Vocabulary:
    """Turn words into classes.

    Args:
        entries: A class each; behind semicolons its synonyms, whose embeddings are averaged with
            that of the name: "police car;squad car". Blank entries are left out, and a class that
            comes twice is one with the synonyms of both.

    Returns:
        The vocabulary, in order of appearance.

    Raises:
        ValueError: If there is no class.
    """
    if isinstance(entries, str):
        raise ValueError(
            f"classes are a list of texts, got the text {entries!r}; write [{entries!r}]"
        )
    groups: dict[str, list[str]] = {}
    for entry in entries:
        words = [word.strip() for word in entry.split(SYNONYM_SEPARATOR) if word.strip()]
        if words:
            groups.setdefault(words[0], []).extend(words[1:])
    if not groups:
        raise ValueError('there is no class; give names such as "police car;squad car"')
    synonyms = tuple(
        tuple(word for word in dict.fromkeys(words) if word != name)
        for name, words in groups.items()
    )
    base = (True,) * len(groups)
    return Vocabulary(tuple(groups), base, synonyms=synonyms if any(synonyms) else ())


class OpenVocabPredictor:
    """A detector that is given its classes as words and its pictures as they are.

    Example::

        predictor = clipself_d2.OpenVocabPredictor(config, weights)
        predictor.set_classes(["police car;squad car", "teddy bear"])
        instances = predictor("street.jpg")["instances"]

    Pictures of one size go through the model together. Those of different sizes do not: they would
    be padded, and a tower's positions follow the padded size, so that the scores of a picture
    would depend on its neighbours.

    Args:
        config: yaml file or a config with the keys of ``add_clipself_config``; or a LazyConfig or
            its .py file, whose classifier is made from ``dataset_embeddings``.
        weights: Checkpoint of the detector; None takes MODEL.WEIGHTS, of a LazyConfig
            ``train.init_checkpoint``.
        overrides: Alternating keys and values, as at the end of a command line; ``key=value`` for
            the file of a LazyConfig.
        min_score: Least score that the detector keeps, in [0, 1]; None is the config's.
        array_format: Order of the channels of pictures given as arrays: RGB, or BGR as cv2 reads.
        batch_size: Most pictures that go through the model at once, >= 1.

    Raises:
        ValueError: If there are no weights, they are of another model, a key is unknown, or an
            option is out of its range.
        FileNotFoundError: If a file is missing.
    """

    def __init__(
        self,
        config: str | Path | Config,
        weights: str | Path | None = None,
        *,
        overrides: Sequence[object] = (),
        min_score: float | None = None,
        array_format: str = "RGB",
        batch_size: int = 8,
    ) -> None:
        if array_format not in ("RGB", "BGR"):
            raise ValueError(f"array_format is {array_format!r}; it is RGB or BGR")
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}; give at least 1")
        if min_score is not None and not 0.0 <= min_score <= 1.0:
            raise ValueError(f"the least score is {min_score}; it must be in [0, 1]")
        source = build_detector(config, weights, overrides)
        self.cfg = source.cfg
        self.array_format = array_format
        self.batch_size = batch_size
        self.model = source.model
        self._resize = source.augmentation
        if min_score is not None:
            _set_threshold(self.model, min_score)
        self._embeddings: TextEmbeddings | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, by ``pred_classes``: those set, or those of the training."""
        if self._embeddings is None:
            return training_vocabulary(self.cfg).names
        return self._embeddings.vocabulary.names

    def set_classes(self, classes: Sequence[str] | Vocabulary) -> None:
        """Choose what is detected from now on.

        Args:
            classes: Names, each with synonyms behind semicolons as ``parse_classes`` reads them; or
                a vocabulary, whose base and novel classes are fused with CLIP differently. Words
                count as base classes.

        Raises:
            ValueError: If there is no class, or the detector knows the classes of its training
                alone.
        """
        given = isinstance(classes, Vocabulary)
        vocabulary = classes if isinstance(classes, Vocabulary) else parse_classes(classes)
        if not any(isinstance(module, TextClassifier) for module in self.model.modules()):
            if given and vocabulary.names == self.names:
                return
            raise ValueError(
                f"{type(self.model).__name__} of this config has no text classifier: it knows the "
                f"{len(self.names)} classes of its training alone; take a config with text "
                "classes, such as MODEL.ROI_HEADS.NAME OpenVocabROIHeads"
            )
        synonyms = [word for group in vocabulary.synonyms for word in group]
        words = tuple(dict.fromkeys([*vocabulary.names, *synonyms]))
        warn_unseen_words(self.cfg, Vocabulary.from_names(words))
        self._embeddings = read_text_embeddings(self.cfg, vocabulary, same_names=False)

    def __call__(
        self, pictures: Picture | Sequence[Picture]
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Detect.

        Args:
            pictures: One picture or a list of any sizes: file, PIL image, or (H, W, 3) uint8 array
                in ``array_format``. Files and PIL images are turned upright by their EXIF data.

        Returns:
            For one picture the model's output, whose ``instances`` are in pixels of the picture;
            for a list a list, in its order.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one is no picture, or an array of another form.
        """
        if isinstance(pictures, list | tuple):
            return self.detect_all(pictures)
        single: Any = pictures
        return self.detect_all([single])[0]

    def detect_all(self, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """Detect in several pictures.

        Args:
            pictures: As of a call.

        Returns:
            The model's output for each.
        """
        images = [self._read(picture) for picture in pictures]
        outputs: list[dict[str, Any]] = [{} for _ in images]
        with torch.no_grad(), self._vocabulary():
            for numbers in _by_size(images, self.batch_size):
                items = [self._prepare(images[number]) for number in numbers]
                for number, output in zip(numbers, self.model(items), strict=True):
                    outputs[number] = output
        return outputs

    def _read(self, picture: Picture) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB."""
        if isinstance(picture, str | Path):
            return np.asarray(read_picture(picture))
        if isinstance(picture, Image.Image):
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        if not isinstance(picture, np.ndarray):
            raise ValueError(f"a picture is a file, a PIL image or an array, got {type(picture)}")
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"a picture given as an array is (H, W, 3) uint8 in {self.array_format}, got "
                f"{picture.shape} {picture.dtype}"
            )
        return picture if self.array_format == "RGB" else picture[:, :, ::-1]

    def _vocabulary(self) -> AbstractContextManager[None]:
        if self._embeddings is None:
            return nullcontext()
        return use_vocabulary(self.model, self._embeddings)

    def _prepare(self, image: np.ndarray) -> dict[str, Any]:
        pixels = image if self.cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        inputs = T.AugInput(pixels)
        self._resize(inputs)
        tensor = torch.from_numpy(np.ascontiguousarray(inputs.image.transpose(2, 0, 1))).float()
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}


def _set_threshold(model: nn.Module, min_score: float) -> None:
    """Let the detector drop low scores before it sorts and suppresses; it is faster."""
    for module in model.modules():
        part: Any = module
        if hasattr(part, "test_score_thresh"):
            part.test_score_thresh = min_score


def _by_size(images: Sequence[np.ndarray], batch_size: int) -> Iterator[list[int]]:
    """Group the numbers of images of one size, ``batch_size`` at most."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        groups.setdefault(image.shape, []).append(number)
    for numbers in groups.values():
        for start in range(0, len(numbers), batch_size):
            yield numbers[start : start + batch_size]
