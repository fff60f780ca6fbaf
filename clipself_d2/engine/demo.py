"""Detection on pictures with classes that the user types."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image
from torch import nn

from clipself_d2.data.pictures import read_picture
from clipself_d2.engine.evaluate import embed_vocabulary, warn_unseen_words
from clipself_d2.engine.trainer import StrictCheckpointer, Trainer, self_contained
from clipself_d2.vocabulary import Vocabulary, use_vocabulary

logger = logging.getLogger(__name__)

# Pictures are drawn at least this wide, px, so that labels can be read.
DRAWN_WIDTH = 640


def choose_vocabulary(kind: str, custom: str) -> Vocabulary:
    """Turn the demo's flags into classes.

    Args:
        kind: "custom", a registered data set, or a file of names.
        custom: Names between commas, for "custom".

    Returns:
        The vocabulary.

    Raises:
        ValueError: If there is no name, or ``kind`` is none of these.
        FileNotFoundError: If ``kind`` looks like a file that is missing.
    """
    if kind == "custom":
        names = [name for name in custom.split(",") if name.strip()]
        if not names:
            raise ValueError(
                '--custom-vocabulary is empty; give names between commas, such as "police car,dog"'
            )
        return Vocabulary.from_names(list(dict.fromkeys(name.strip() for name in names)))
    if kind in DatasetCatalog.list():
        return Vocabulary.from_metadata(MetadataCatalog.get(kind))
    if Path(kind).suffix in (".txt", ".json") or Path(kind).is_file():
        return Vocabulary.from_file(kind)
    raise ValueError(
        f"--vocabulary is {kind!r}; it is custom, a registered data set such as emoji_ov_val, or a "
        ".txt or .json file of names"
    )


def detect(cfg: CfgNode, model: nn.Module, image: np.ndarray) -> dict[str, Any]:
    """Run a detector on one picture.

    Args:
        cfg: The whole config.
        model: The detector in evaluation mode.
        image: (H, W, 3) uint8 RGB.

    Returns:
        The model's output; ``instances`` in pixels of the picture.
    """
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    pixels = image if cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
    resized = resize.get_transform(pixels).apply_image(pixels)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))).float()
    with torch.no_grad():
        return model([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])[0]


def draw(image: np.ndarray, output: dict[str, Any], names: Sequence[str]) -> np.ndarray:
    """Draw detections.

    Args:
        image: (H, W, 3) uint8 RGB.
        output: Of ``detect``.
        names: Class names.

    Returns:
        (H', W', 3) uint8 RGB, enlarged where the picture is small.
    """
    metadata = Metadata()
    metadata.set(thing_classes=list(names))
    scale = max(1.0, DRAWN_WIDTH / image.shape[1])
    drawer = Visualizer(image, metadata, scale=scale, instance_mode=ColorMode.IMAGE)
    return drawer.draw_instance_predictions(output["instances"].to("cpu")).get_image()


def run_demo(
    cfg: CfgNode,
    inputs: Iterable[Path],
    output_dir: Path,
    vocabulary: Vocabulary,
    min_score: float,
) -> list[Path]:
    """Detect the classes of a vocabulary in pictures and write the pictures with boxes.

    Args:
        cfg: The whole config; MODEL.WEIGHTS is the detector.
        inputs: Pictures.
        output_dir: Folder for the results, named as the inputs.
        vocabulary: The classes.
        min_score: Least score drawn, in [0, 1].

    Returns:
        Files written.

    Raises:
        ValueError: If MODEL.WEIGHTS is empty or of another model, or a picture is damaged.
        FileNotFoundError: If a picture is missing.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty; give the detector's checkpoint as KEY VALUE")
    pictures = [(path, np.asarray(read_picture(path))) for path in inputs]
    warn_unseen_words(cfg, vocabulary)
    model = Trainer.build_model(self_contained(cfg)).eval()
    StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    output_dir.mkdir(parents=True, exist_ok=True)
    written = []
    with use_vocabulary(model, embed_vocabulary(cfg, vocabulary)):
        for path, image in pictures:
            output = detect(cfg, model, image)
            found = output["instances"]
            output["instances"] = found[found.scores >= min_score]
            target = output_dir / f"{path.stem}.png"
            Image.fromarray(draw(image, output, vocabulary.names)).save(target)
            labels = [vocabulary.names[number] for number in output["instances"].pred_classes]
            logger.info("%s: %s", target, ", ".join(labels) if labels else "nothing found")
            written.append(target)
    return written
