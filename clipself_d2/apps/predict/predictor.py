"""Detection with classes given as words, in three lines of Python."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image, ImageOps

from clipself_d2.apps.predict.detector_source import Config, build_detector
from clipself_d2.clip import TextEncoder, load_clip
from clipself_d2.clip.registry import project_models
from clipself_d2.data.pictures import read_picture
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.text_embeddings import read_text_embeddings, training_vocabulary
from clipself_d2.parts.words import shortened
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

logger = logging.getLogger(__name__)

Picture = np.ndarray | Image.Image | str | Path


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
        raise ValueError(f"classes are a list of texts; write [{entries!r}]")
    groups: dict[str, list[str]] = {}
    for entry in entries:
        words = [word.strip() for word in entry.split(";") if word.strip()]
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


def warn_unseen_words(text: TextEncoder, name: str, words: Sequence[str]) -> None:
    """Warn of words that the embedded CLIP never read.

    Args:
        text: A text tower; those trained on web text have no such words.
        name: Name of its CLIP.
        words: Words or sentences typed by the user.
    """
    unseen = text.unseen_words(list(dict.fromkeys(words)))
    if unseen:
        message = "%s never read the words %s in training; expect noise for them"
        logger.warning(message, name, shortened(unseen))


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
            # Low scores are dropped before they are sorted and suppressed, which is faster.
            parts: list[Any] = [*self.model.modules()]
            for part in parts:
                if hasattr(part, "test_score_thresh"):
                    part.test_score_thresh = min_score
        self._embeddings: TextEmbeddings | None = None
        # Of the embedded CLIP, the only one that knows which words it never read.
        self._text: TextEncoder | None = None

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
        clip = self.cfg.MODEL.CLIP
        if clip.NAME in project_models():
            self._text = self._text or load_clip(clip.NAME, clip.PRETRAINED or None).text
            words = [*vocabulary.names, *(w for group in vocabulary.synonyms for w in group)]
            warn_unseen_words(self._text, clip.NAME, words)
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
        by_size: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(number)
        outputs: dict[int, dict[str, Any]] = {}
        with torch.no_grad(), self._vocabulary():
            for numbers in by_size.values():
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    items = [self._prepare(images[number]) for number in batch]
                    outputs.update(zip(batch, self.model(items), strict=True))
        return [outputs[number] for number in range(len(images))]

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
