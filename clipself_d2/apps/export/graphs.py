"""What is exported: a model from pixels and text embeddings to tensors, words left outside.

Legend: N images, D joint embedding, K classes, R detections, T tokens, H W pixels, h w cells.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.export.flatten import patch_builtin_len
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor, nn

from clipself_d2.apps.predict.prompts import parse_classes
from clipself_d2.clip import VisionTower
from clipself_d2.detection.dense_text import OpenVocabFCOS, OpenVocabRetinaNet
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.text_embeddings import read_text_embeddings, training_vocabulary
from clipself_d2.referring.cris import CRIS
from clipself_d2.segmentation.cat_seg import CATSegmentor

# Modules whose ``len`` of detections a trace must record instead of its value.
_COUNTING = (
    "clipself_d2.detection.roi_heads",
    "clipself_d2.detection.output_layers",
    "clipself_d2.detection.cascade",
    "clipself_d2.detection.res5_heads",
    "clipself_d2.layers.score_fusion",
)
# Sides of the pictures on which a graph is recorded (first) and checked, in cells of the patch.
_GRIDS = ((10, 13), (14, 9), (11, 16))
_BATCHES, _LENGTHS = (2, 1, 3), (5, 2, 9)
Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """A model ready to be exported.

    Attributes:
        module: From the inputs, in order, to the outputs.
        inputs: Shape of each by name; a text stands for a size that may change.
        outputs: Names.
        example: From a number, 0 or more, to inputs of sizes of their own.
        embed: From words to the inputs that stand for them; None for an image tower.
        multiple: Number of which height and width are multiples.
        most_classes: Largest number of classes.
        traced: Whether ONNX is made from a trace; else from torch.export.
        square: Side of the pictures where torch.export does not follow another; 0: it does.
        boxes: Whether the outputs are detections, of which the number changes.
    """

    module: nn.Module
    inputs: dict[str, Dims]
    outputs: tuple[str, ...]
    example: Callable[[int], tuple[Tensor, ...]]
    embed: Callable[[Sequence[str]], dict[str, Tensor]] | None = None
    multiple: int = 1
    most_classes: int = 10_000
    traced: bool = False
    square: int = 0
    boxes: bool = False
    about: dict[str, object] = field(default_factory=dict)


def tower_graph(tower: VisionTower, blocks: Sequence[int] = ()) -> Graph:
    """Export an image tower: the dense map and the outputs of ``blocks``, counted from 0.

    Returns:
        From ``images`` (N, 3, H, W), RGB 0 to 255, to ``dense`` (N, D, h, w), unit norm in every
        cell, and ``block<i>`` (N, C, h, w).
    """
    tower.check_dense(blocks, None)
    side = math.lcm(tower.patch_size, *tower.block_strides)

    def example(number: int) -> tuple[Tensor, ...]:
        height, width = (side * cells for cells in _pick(_GRIDS, number))
        return (_pictures(number, _pick(_BATCHES, number), height, width),)

    return Graph(
        module=_Tower(tower, blocks).eval(),
        inputs={"images": ("batch", 3, "height", "width")},
        outputs=("dense", *(f"block{number}" for number in blocks)),
        example=example,
        multiple=side,
        traced=True,
        about={"clip": tower.name, "pixels": "RGB, 0 to 255"},
    )


def model_graph(model: nn.Module, cfg: CfgNode) -> Graph:
    """Make the graph of a detector or a segmentor in eval mode, with its weights."""
    about = {"clip": cfg.MODEL.CLIP.NAME, "pixels": f"{cfg.INPUT.FORMAT}, 0 to 255"}
    for tower in _parts(model, VisionTower):
        tower.precision = "fp32"
    if isinstance(model, CRIS):
        return _referring_graph(model, cfg, about)
    if isinstance(model, CATSegmentor):
        return _segmentor_graph(model, cfg, about)
    one_stage = isinstance(model, OpenVocabRetinaNet | OpenVocabFCOS)
    plain = type(model) is GeneralizedRCNN and not getattr(
        getattr(model.roi_heads, "box_predictor", None), "soft_nms", ""
    )
    if not (one_stage or plain) or not _parts(model, TextClassifier):
        raise ValueError(
            f"{type(model).__name__} of this config cannot be exported; F-ViT and other "
            "GeneralizedRCNN with text classes and without soft NMS, OpenVocabRetinaNet, "
            "OpenVocabFCOS, CRIS, CATSegmentor and image towers can"
        )
    return _detector_graph(model, cfg, about)


def _detector_graph(model: nn.Module, cfg: CfgNode, about: dict[str, object]) -> Graph:
    rcnn = isinstance(model, GeneralizedRCNN)
    masks = rcnn and model.roi_heads.mask_on  # type: ignore[union-attr]
    width = _parts(model, TextClassifier)[0].embed_dim
    side = int(cfg.INPUT.MIN_SIZE_TEST) or 480

    def example(number: int) -> tuple[Tensor, ...]:
        height, wide = (side * cells // 12 + number for cells in _pick(_GRIDS, number))
        text, base = _classes(number, width)
        return (_pictures(number, 1, height, wide)[0], text, *([base] if rcnn else []))

    def embed(words: Sequence[str]) -> dict[str, Tensor]:
        found = read_text_embeddings(cfg, parse_classes(words), same_names=False)
        base = {"base": torch.tensor(found.vocabulary.base_mask)} if rcnn else {}
        return {"text": found.embeddings_KD, **base}

    inputs: dict[str, Dims] = {"image": (3, "height", "width"), "text": ("classes", width)}
    return Graph(
        module=_Detector(model).eval(),
        inputs={**inputs, **({"base": ("classes",)} if rcnn else {})},
        outputs=("boxes", "scores", "classes", *(["masks"] if masks else [])),
        example=example,
        embed=embed,
        boxes=True,
        traced=True,
        about={
            **about,
            "boxes": "XYXY in pixels of the image given",
            "short side in training's tests": side,
            **({"masks": "(R, 1, s, s) probabilities in the box"} if masks else {}),
        },
    )


def _segmentor_graph(model: CATSegmentor, cfg: CfgNode, about: dict[str, object]) -> Graph:
    side = model.options.windows.window_size

    def example(number: int) -> tuple[Tensor, ...]:
        height, width = (side * cells // 12 for cells in _pick(_GRIDS, number))
        return (
            _pictures(number, 1, height, width)[0],
            _classes(number, model.classifier.embed_dim)[0],
        )

    def embed(words: Sequence[str]) -> dict[str, Tensor]:
        found = read_text_embeddings(cfg, parse_classes(words), same_names=False)
        return {"text": model.embed_vocabulary(found).embeddings_KD}

    # A list as long as the aggregator's would be filled up no more, a longer one cut.
    limits = (model.options.shortlist, model.aggregator.list_length, 10_000)
    return Graph(
        module=_Segmentor(model).eval(),
        inputs={
            "image": (3, "height", "width"),
            "text": ("classes", model.classifier.embed_dim),
        },
        outputs=("scores",),
        example=example,
        embed=embed,
        most_classes=min(limit for limit in limits if limit) - 1,
        about=about,
    )


def _referring_graph(model: CRIS, cfg: CfgNode, about: dict[str, object]) -> Graph:
    side, divisor, length = cfg.INPUT.REFER_SIZE, model.backbone.divisor, model.word_length

    def embed(sentences: Sequence[str]) -> dict[str, Tensor]:
        tokens = model.text.tokenize(list(sentences), length)
        words, state = model.text.word_features(tokens)
        # The end of a sentence has the largest token.
        padding = torch.arange(length) > tokens.argmax(dim=1, keepdim=True)
        return {"words": words, "state": state, "padding": padding}

    def example(number: int) -> tuple[Tensor, ...]:
        sentences = [f"a {word} on the left" for word in ["dog", "cat", "car"]]
        text = embed(sentences[: _pick(_BATCHES, number)])
        square = side + divisor * (number > 1)
        return (_pictures(number, len(text["words"]), square, square), *text.values())

    words, state, _ = embed(["a dog"]).values()
    return Graph(
        module=_Referring(model).eval(),
        inputs={
            "images": ("batch", 3, "height", "width"),
            "words": ("batch", length, words.shape[-1]),
            "state": ("batch", state.shape[-1]),
            "padding": ("batch", length),
        },
        outputs=("probabilities",),
        example=example,
        embed=embed,
        multiple=divisor,
        square=side,
        about={**about, "images": f"letterboxed to {side} x {side}"},
    )


class _Tower(nn.Module):
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, tower: VisionTower, blocks: Sequence[int]) -> None:
        super().__init__()
        tower.precision = "fp32"
        self.tower, self.blocks = tower, tuple(blocks)
        for name in ("pixel_mean", "pixel_std"):
            value = torch.tensor(getattr(tower, name)).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.tower.forward_dense((images - self.pixel_mean) / self.pixel_std, self.blocks)
        return (found.embedding, *found.blocks)


class _Wrapped(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _Detector(_Wrapped):
    def forward(self, image: Tensor, text: Tensor, base: Tensor | None = None) -> tuple:
        with _use_embeddings(self.model, text, base), patch_builtin_len(_COUNTING):
            if isinstance(self.model, GeneralizedRCNN):
                # Masks are pasted by the caller, as Detectron2's own export leaves it.
                found = self.model.inference([{"image": image}], do_postprocess=False)[0]
            else:
                found = self.model([{"image": image}])[0]["instances"]
        masks = (found.pred_masks,) if found.has("pred_masks") else ()
        return (found.pred_boxes.tensor, found.scores, found.pred_classes, *masks)


class _Segmentor(_Wrapped):
    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        size = (image.shape[-2], image.shape[-1])
        return self.model.segment(self.model.encode_views(image), size, text)


class _Referring(_Wrapped):
    def forward(self, images: Tensor, words: Tensor, state: Tensor, padding: Tensor) -> Tensor:
        # What ``CRIS.forward`` does behind its text tower.
        model = self.model
        pixels = (images - model.pixel_mean) / model.pixel_std
        fused = model.neck(model.resampling(model.backbone(pixels)), state)
        if model.decoder is not None:
            fused = model.decoder(fused, words, padding)
        scores = model.proj(fused, state).sigmoid()
        size = images.shape[-2:]
        return F.interpolate(scores, size, mode="bicubic", align_corners=True)[:, 0]


@contextmanager
def _use_embeddings(model: nn.Module, text: Tensor, base: Tensor | None) -> Iterator[None]:
    """What ``use_vocabulary`` does, without its checks, which no graph can hold."""
    classifiers = _parts(model, TextClassifier)
    former = [(part.embeddings_KD, part.base_mask) for part in classifiers]
    for part in classifiers:
        part.embeddings_KD = F.normalize(text, dim=-1)
        part.base_mask = part.base_mask if base is None else base
    try:
        yield
    finally:
        for part, (embeddings, mask) in zip(classifiers, former, strict=True):
            part.embeddings_KD, part.base_mask = embeddings, mask


def _parts(model: nn.Module, kind: type) -> list:
    return [part for part in model.modules() if isinstance(part, kind)]


def _pick(values: Sequence, number: int):  # noqa: ANN202
    return values[number % len(values)]


def _pictures(number: int, batch: int, height: int, width: int) -> Tensor:
    """Smooth patches of colour: of noise, detectors say the same everywhere."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand((batch, 3, 7, 9), generator=generator) * 255
    return F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)


def _classes(number: int, width: int) -> tuple[Tensor, Tensor]:
    count = _pick(_LENGTHS, number)
    generator = torch.Generator().manual_seed(count)
    text = F.normalize(torch.randn((count, width), generator=generator), dim=-1)
    return text, torch.arange(count) % 2 == 0


def default_words(cfg: CfgNode) -> tuple[str, ...]:
    """Name the classes of a model's training."""
    return training_vocabulary(cfg, semantic=cfg.MODEL.META_ARCHITECTURE == "CATSegmentor").names
