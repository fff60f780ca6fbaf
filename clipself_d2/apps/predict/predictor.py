"""Detection with classes given as words, in three lines of Python."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image

from clipself_d2.apps.predict.detector_source import Config, build_detector
from clipself_d2.apps.predict.encoded import EncodedPicture, dense_map, embed_boxes, kept_features
from clipself_d2.apps.predict.prompts import (
    ClassPrompt,
    PromptSet,
    add_negative,
    parse_prompts,
    warn_unseen_words,
)
from clipself_d2.apps.predict.references import with_references
from clipself_d2.apps.predict.slices import SlicePlan, merge_slices
from clipself_d2.clip import TextEncoder, VisionTower, load_clip
from clipself_d2.clip.registry import project_models
from clipself_d2.data.pictures import naming_picture, read_picture, upright_rgb
from clipself_d2.layers.segment_classifier import SegmentTextClassifier
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.image_tower import load_original_tower
from clipself_d2.parts.text_embeddings import read_text_embeddings, training_vocabulary
from clipself_d2.vocabulary import Vocabulary, use_vocabulary

logger = logging.getLogger(__name__)

Picture = np.ndarray | Image.Image | str | Path | EncodedPicture


class OpenVocabPredictor:
    """A detector that is given its classes as words and its pictures as they are.

    Example::

        predictor = clipself_d2.OpenVocabPredictor(config, weights)
        predictor.set_classes(["police car;squad car", "teddy bear"])
        instances = predictor("street.jpg")["instances"]

    Pictures of one size go through the model together. Those of different sizes do not: they would
    be padded, and a tower's positions follow the padded size, so that the scores of a picture
    would depend on its neighbours. Threads may share a predictor; they take turns.

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
        parts: list[Any] = [*self.model.modules()]
        self._thresholded = [part for part in parts if hasattr(part, "test_score_thresh")]
        if min_score is None:
            min_score = min((part.test_score_thresh for part in self._thresholded), default=0.0)
        self.min_score = min_score
        self._segments = any(isinstance(part, SegmentTextClassifier) for part in parts)
        self._prompts: PromptSet | None = None
        # The model holds one vocabulary at a time.
        self._turn = threading.Lock()
        # Of the embedded CLIP, the only one that knows which words it never read.
        self._text: TextEncoder | None = None
        # CLIP's own image tower, which embeds references.
        self._tower: VisionTower | None = None

    @property
    def prompts(self) -> PromptSet | None:
        """What is detected, as it was set; None stands for the classes of the training."""
        return self._prompts

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, by ``pred_classes``: those set, or those of the training."""
        if self._prompts is None:
            return training_vocabulary(self.cfg).names
        return self._prompts.names

    @property
    def thing_mask(self) -> tuple[bool, ...] | None:
        """Which of the classes are things; None where all are."""
        if self._prompts is None:
            return training_vocabulary(self.cfg).thing_mask
        mask = self._prompts.embeddings.vocabulary.thing_mask
        return mask and mask[: self._prompts.num_reported]

    def set_classes(
        self,
        classes: Sequence[str | ClassPrompt] | Vocabulary | PromptSet,
        negative: Sequence[str] = (),
    ) -> None:
        """Choose what is detected from now on.

        Args:
            classes: As of ``make_prompts``; or what that, or ``PromptSet.load``, gave.
            negative: As of ``make_prompts``.

        Raises:
            ValueError: As of ``make_prompts``, or if a set is of another CLIP.
        """
        if not isinstance(classes, PromptSet):
            prompts = self.make_prompts(classes, negative)
            if prompts is not None:
                self._prompts = prompts
            return
        clip = self.cfg.MODEL.CLIP
        classes.check(clip.NAME, clip.PRETRAINED)
        self._prompts = classes

    def make_prompts(
        self, classes: Sequence[str | ClassPrompt] | Vocabulary, negative: Sequence[str] = ()
    ) -> PromptSet | None:
        """Embed classes, without setting them.

        Args:
            classes: Names, each with synonyms behind semicolons as ``parse_classes`` reads them, or
                ``ClassPrompt`` with reference pictures or a threshold of its own; or a vocabulary,
                whose base and novel classes are fused with CLIP differently. Words count as base
                classes; those of a panoptic model are base, and stuff, where the training's are.
            negative: Words that are scored beside the classes and never reported: what looks more
                like one of them is none of the classes.

        Returns:
            The set; None for the classes of the training of a detector that knows no others.

        Raises:
            ValueError: If there is no class, or the detector has no text classes.
        """
        given = isinstance(classes, Vocabulary)
        prompts: Sequence[ClassPrompt] = ()
        if isinstance(classes, Vocabulary):
            vocabulary = classes
        else:
            vocabulary, prompts = parse_prompts(classes)
        count = vocabulary.num_classes
        vocabulary = add_negative(vocabulary, negative)
        if not any(isinstance(module, TextClassifier) for module in self.model.modules()):
            if given and vocabulary.names == self.names:
                return None
            raise ValueError(
                f"{type(self.model).__name__} of this config has no text classifier: it knows the "
                f"{len(self.names)} classes of its training alone; take a config with text "
                "classes, such as MODEL.ROI_HEADS.NAME OpenVocabROIHeads"
            )
        clip = self.cfg.MODEL.CLIP
        if clip.NAME in project_models():
            self._text = self._text or load_clip(clip.NAME, clip.PRETRAINED or None).text
            silent = {prompt.name for prompt in prompts if not prompt.words}
            words = [word for group in vocabulary.words for word in group if word not in silent]
            warn_unseen_words(self._text, clip.NAME, words)
        if not given and self._segments:
            vocabulary = vocabulary.novel_to(training_vocabulary(self.cfg))
        embeddings = read_text_embeddings(self.cfg, vocabulary, same_names=False)
        if any(prompt.references for prompt in prompts):
            if getattr(self.model, "words", None) is not None:
                raise ValueError(
                    f"{type(self.model).__name__} of this config embeds words by a text tower that "
                    "it has trained, to which references cannot be compared; give words alone"
                )
            self._tower = self._tower or load_original_tower(self.cfg).to(self._device)
            embeddings = with_references(embeddings, prompts, self._tower, self._read)
        return PromptSet(
            embeddings,
            tuple(prompt.min_score for prompt in prompts) or (None,) * count,
            tuple(len(prompt.references) for prompt in prompts),
        )

    def encode(self, picture: Picture) -> EncodedPicture:
        """Prepare a picture for several vocabularies.

        Args:
            picture: As of a call.

        Returns:
            The picture, to be given in its place: the image tower runs at the first call only.
        """
        return EncodedPicture(self._read(picture), _name(picture))

    def __call__(
        self, pictures: Picture | Sequence[Picture], **options: Any
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Detect.

        Args:
            pictures: One picture or a list of any sizes: file, PIL image, (H, W, 3) uint8 array in
                ``array_format``, or of ``encode``. Files and PIL images are turned upright by their
                EXIF data.
            options: Of ``detect_all``.

        Returns:
            For one picture the model's output, whose ``instances`` are in pixels of the picture;
            for a list a list, in its order.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one is no picture.
        """
        if isinstance(pictures, list | tuple):
            return self.detect_all(pictures, **options)
        single: Any = pictures
        return self.detect_all([single], **options)[0]

    def detect_all(
        self,
        pictures: Sequence[Picture],
        names: Sequence[str] = (),
        *,
        prompts: PromptSet | None = None,
        embeddings: bool = False,
        slices: SlicePlan | None = None,
    ) -> list[dict[str, Any]]:
        """Detect in several pictures.

        Args:
            pictures: As of a call.
            names: What an error calls each; () names files, and of other pictures the type.
            prompts: Classes for this call alone, of ``make_prompts``; None takes those set.
            embeddings: Whether instances have ``embeddings``, (R, D) of unit norm: the mean of the
                dense CLIP map inside of their boxes.
            slices: How pictures larger than a slice are cut; None looks at the whole picture.

        Returns:
            The model's output for each.
        """
        names = names or [_name(picture) for picture in pictures]
        keep = [isinstance(picture, EncodedPicture) for picture in pictures]
        whole: list[Any] = [
            picture if kept else EncodedPicture(self._read(picture), name)
            for picture, name, kept in zip(pictures, names, keep, strict=True)
        ]
        with torch.no_grad(), self._turn:
            prompts = prompts or self._prompts
            with self._vocabulary(prompts), self._thresholds(prompts):
                outputs = self._run(whole, keep, embeddings)
                if slices is not None:
                    outputs = [
                        self._slice(picture, output, slices, embeddings)
                        for picture, output in zip(whole, outputs, strict=True)
                    ]
        if prompts is None:
            return outputs
        return [prompts.report(output, self.min_score) for output in outputs]

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _run(
        self, pictures: Sequence[EncodedPicture], keep: Sequence[bool], embeddings: bool
    ) -> list[dict[str, Any]]:
        """Pictures of one size together; those whose features are kept by themselves."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, picture in enumerate(pictures):
            key = (number,) if keep[number] else picture.image.shape
            groups.setdefault(key, []).append(number)
        outputs: dict[int, dict[str, Any]] = {}
        for numbers in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                items = [self.prepare(pictures[number]) for number in batch]
                first = pictures[batch[0]]
                if not (keep[batch[0]] or embeddings):
                    outputs.update(zip(batch, self.model(items), strict=True))
                    continue
                with kept_features(self.model, first.features) as seen:
                    outputs.update(zip(batch, self.model(items), strict=True))
                if keep[batch[0]]:
                    first.features = seen[0]
                for place, (number, item) in enumerate(zip(batch, items, strict=True)):
                    if embeddings:
                        self._embed(outputs[number], item, seen[0], place)
        return [outputs[number] for number in range(len(pictures))]

    def _embed(self, output: Any, item: dict[str, Any], features: Any, place: int) -> None:
        height, width = item["image"].shape[1:]
        scale = (width / item["width"], height / item["height"])
        # Of a model without a map this says so.
        dense, stride = dense_map(self.model, features)
        found = output["instances"]
        boxes = found.pred_boxes.tensor
        found.embeddings = embed_boxes(dense[place], stride, boxes, scale)

    def _slice(
        self, picture: EncodedPicture, output: dict[str, Any], plan: SlicePlan, embeddings: bool
    ) -> dict[str, Any]:
        places = plan.cut(*picture.image.shape[:2])
        if len(places) == 1:
            return output
        if set(output) != {"instances"}:
            raise ValueError(
                f"slices need a detector of boxes; {type(self.model).__name__} gives "
                f"{', '.join(output)}; leave the slices out"
            )
        parts = [
            EncodedPicture(picture.image[top:bottom, left:right], picture.name)
            for left, top, right, bottom in places
        ]
        found = self._run(parts, [False] * len(parts), embeddings)
        merged = merge_slices(output["instances"], [part["instances"] for part in found], places)
        return {"instances": merged}

    def _read(self, picture: Picture) -> np.ndarray:
        """Return (H, W, 3) uint8 RGB."""
        if isinstance(picture, str | Path):
            return np.asarray(read_picture(picture))
        if isinstance(picture, Image.Image):
            # Pillow decodes a file when its pixels are asked for.
            with naming_picture(_name(picture)):
                return np.asarray(upright_rgb(picture))
        if not isinstance(picture, np.ndarray):
            raise ValueError(f"a picture is a file, a PIL image or an array, got {type(picture)}")
        shape = picture.shape
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or picture.dtype != np.uint8:
            raise ValueError(
                f"a picture given as an array is (H, W, 3) uint8 in {self.array_format}, got "
                f"{shape} {picture.dtype}"
            )
        return picture if self.array_format == "RGB" else picture[:, :, ::-1]

    def _vocabulary(self, prompts: PromptSet | None) -> AbstractContextManager[None]:
        return nullcontext() if prompts is None else use_vocabulary(self.model, prompts.embeddings)

    @contextmanager
    def _thresholds(self, prompts: PromptSet | None) -> Iterator[None]:
        """Let the model keep what the most lenient class wants: fewer boxes are sorted faster."""
        own = () if prompts is None else prompts.min_scores
        least = min([self.min_score, *(score for score in own if score is not None)])
        former = [part.test_score_thresh for part in self._thresholded]
        for part in self._thresholded:
            part.test_score_thresh = least
        try:
            yield
        finally:
            for part, value in zip(self._thresholded, former, strict=True):
                part.test_score_thresh = value

    def prepare(self, picture: EncodedPicture) -> dict[str, Any]:
        """Make a picture the model's input: ``image`` (3, H, W), ``height`` and ``width``, px."""
        image = picture.image
        pixels = image if self.cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
        inputs = T.AugInput(pixels)
        height, width = image.shape[:2]
        try:
            self._resize(inputs)
        except ValueError as error:
            raise ValueError(
                f"image {picture.name} of {width} x {height} px cannot be scaled to the size of "
                f"test images ({error}); cut it to a shape less extreme"
            ) from error
        tensor = torch.from_numpy(np.ascontiguousarray(inputs.image.transpose(2, 0, 1))).float()
        return {"image": tensor, "height": height, "width": width}


def _name(picture: Picture) -> str:
    """The file of a picture, or what it is."""
    if isinstance(picture, EncodedPicture):
        return picture.name
    if isinstance(picture, str | Path):
        return str(picture)
    return str(getattr(picture, "filename", "") or f"given as {type(picture).__name__}")
