"""Segmentation of what a typed expression refers to."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from torch import Tensor

from clipself_d2.apps.predict.demo import DRAWN_WIDTH, new_name
from clipself_d2.apps.predict.detector_source import find_checkpoint
from clipself_d2.apps.predict.media import check_readable
from clipself_d2.apps.predict.prompts import warn_unseen_words
from clipself_d2.data.pictures import read_picture
from clipself_d2.engine.trainer import Trainer
from clipself_d2.layers.letterbox import letterbox_image
from clipself_d2.runs.checkpointer import StrictCheckpointer, self_contained

logger = logging.getLogger(__name__)

META_ARCHITECTURE = "CRIS"
MASK_COLOUR = (0.9, 0.1, 0.1)
OPACITY = 0.5


class ReferringPredictor:
    """A CRIS model that is given pictures and expressions as they are.

    Args:
        cfg: The whole config of META_ARCHITECTURE CRIS; MODEL.WEIGHTS is the model.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.MODEL.META_ARCHITECTURE != META_ARCHITECTURE:
            raise ValueError(
                f"--expression needs MODEL.META_ARCHITECTURE {META_ARCHITECTURE}, not "
                f"{cfg.MODEL.META_ARCHITECTURE}; give a config such as configs/emoji/cris.yaml"
            )
        self.cfg = cfg
        self.model: Any = Trainer.build_model(self_contained(cfg)).eval()
        StrictCheckpointer(self.model).load(find_checkpoint("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS))

    def __call__(self, image: np.ndarray, expressions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Segment an (H, W, 3) uint8 RGB picture by several sentences; it is encoded once.

        It is warned of those that are longer than the text tower reads, and of words that the
        embedded CLIP never read where its text tower was not trained.

        Returns:
            For each expression ``ref_mask_prob`` (H, W) and ``ref_mask`` (H, W) bool.
        """
        check_expressions(expressions)
        tokens = self.model.text.tokenize(expressions, self.model.word_length)
        self.model.text.warn_of_cut(expressions, tokens)
        if self.cfg.MODEL.CLIP.TEXT_TRAINABLE_BLOCKS == 0:
            warn_unseen_words(self.model.text, self.cfg.MODEL.CLIP.NAME, expressions)
        red, green, blue = self.cfg.MODEL.PIXEL_MEAN
        placed = letterbox_image(image, self.cfg.INPUT.REFER_SIZE, (red, green, blue))
        tensor = torch.from_numpy(np.ascontiguousarray(placed.transpose(2, 0, 1)))
        size = {"height": image.shape[0], "width": image.shape[1]}
        with torch.no_grad():
            return self.model([{"image": tensor, "sentence": text, **size} for text in expressions])


def check_expressions(expressions: Sequence[str]) -> None:
    """Refuse expressions without a word."""
    if not all(text.strip() for text in expressions):
        raise ValueError(
            'the expression is blank; give a sentence such as "the dog on the left" (--expression)'
        )


def draw_mask(image: np.ndarray, mask: np.ndarray, text: str) -> np.ndarray:
    """Draw an (H, W) bool mask, which may be empty, and its expression; enlarge small pictures."""
    drawer = Visualizer(image, scale=max(1.0, DRAWN_WIDTH / image.shape[1]))
    if mask.any():
        drawer.draw_binary_mask(mask.astype(np.uint8), color=MASK_COLOUR, alpha=OPACITY)
    drawer.draw_text(text, (image.shape[1] / 2, 2))
    return drawer.get_output().get_image()


def run_refer_demo(
    cfg: CfgNode, inputs: Sequence[Path], output_dir: Path, expressions: Sequence[str]
) -> list[Path]:
    """Segment expressions in pictures and write a drawing for each, which are listed.

    The inputs are checked before anything is written. Drawings are called ``<picture>_<number of
    the expression>.png``; of a further picture of the same name ``<picture>_<n>_...``.
    """
    check_expressions(expressions)
    if not inputs:
        raise ValueError("there is no picture; give --input (--expression reads no camera)")
    check_readable(inputs)
    predictor = ReferringPredictor(cfg)
    output_dir.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    names: set[str] = set()
    for path in inputs:
        image = np.asarray(read_picture(path))
        name = new_name(path.stem, names)
        for number, output in enumerate(predictor(image, expressions)):
            mask = output["ref_mask"].numpy()
            target = output_dir / f"{name}_{number}.png"
            Image.fromarray(draw_mask(image, mask, expressions[number])).save(target)
            logger.info("%s: %r, %d pixels", target, expressions[number], int(mask.sum()))
            written.append(target)
    return written
