"""Boxes, panoptic segments and heat maps of typed words by the weights that come with the package.

Legend: K words, h w patch grid.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from clipself_d2.apps.analysis.heat_maps import COLOR_MAP, LOW_END, dense_map, similarity_maps
from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.apps.emoji.scenes import SceneRenderer
from clipself_d2.apps.predict.demo import draw
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.segments import draw_segments, segments_of
from clipself_d2.data.pictures import read_picture
from clipself_d2.parts.recipe_files import get_config_file
from clipself_d2.parts.shipped_weights import PREFIX

logger = logging.getLogger(__name__)

DETECTOR, SEGMENTER = "emoji/fvit_clipself", "emoji/ov_panoptic_clipself"
COLUMNS = 3
STUDENT = TowerSpec("distilled", "ViT-Ti-8-emoji", "emoji", "emoji_clipself")


def render_picture(seed: int) -> Image.Image:
    """Draw a scene of the emoji world."""
    return Image.fromarray(SceneRenderer().render(np.random.default_rng(seed)).image)


def look(
    words: Sequence[str], output: Path, *, image: Path | None = None, seed: int = 0, score: float
) -> list[str]:
    """Ask the three models for K words, and draw their answers side by side.

    Args:
        words: K words.
        output: The picture to write.
        image: The picture to look at; None draws the scene of ``seed``.
        seed: Which scene.
        score: Least score of a box, 0 to 1.

    Returns:
        Names of the boxes.
    """
    picture = render_picture(seed) if image is None else read_picture(image)
    pixels = np.asarray(picture)
    detector, segmenter = (
        OpenVocabPredictor(get_config_file(f"{name}.yaml"), f"{PREFIX}{name}.pth", min_score=least)
        for name, least in ((DETECTOR, score), (SEGMENTER, None))
    )
    for predictor in (detector, segmenter):
        predictor.set_classes(words)
    found = detector.detect_all([pixels])[0]["instances"]
    segments = segments_of(segmenter.detect_all([pixels])[0])
    assert segments is not None, "a segmenter gives segments"
    tower = STUDENT.load()
    maps = similarity_maps(dense_map(tower, picture), STUDENT.embed(words).embeddings_KD)

    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("the picture", pixels, {}),
        ("boxes", draw(pixels, found, words), {}),
        ("panoptic", draw_segments(pixels, *segments, words), {}),
    ]
    height, width = (side * tower.patch_size for side in maps.shape[1:])
    colours = {"cmap": COLOR_MAP, "vmin": float(maps.quantile(LOW_END)), "vmax": float(maps.max())}
    colours["extent"] = (0, width, height, 0)
    panels += [(f"like {word}", m.numpy(), colours) for word, m in zip(words, maps, strict=True)]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.8 * rows), layout="constrained")
    for axes in figure.subplots(rows, COLUMNS).flat:
        axes.set_axis_off()
    # Axes behind the last panel stay empty.
    for axes, (title, drawn, options) in zip(figure.axes, panels, strict=False):
        axes.imshow(drawn, **options)
        axes.set_title(title)
        if options:
            # Of padded cells what lies in the picture.
            axes.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=75)
    names = [words[number] for number in found.pred_classes.tolist()]
    logger.info("%s: %s", output, ", ".join(names) or "nothing found")
    return names
