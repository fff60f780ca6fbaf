"""Classes by example: reference pictures, and boxes of them, beside words.

Legend: D joint embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipself_d2.apps.analysis.region_alignment import prepare_pixels
from clipself_d2.apps.predict.prompts import ClassPrompt
from clipself_d2.clip import VisionTower
from clipself_d2.data.pictures import cut_crops
from clipself_d2.vocabulary import TextEmbeddings

# Turns what a user calls a picture into (H, W, 3) uint8 RGB.
Reader: TypeAlias = Callable[[Any], np.ndarray]


def with_references(
    embeddings: TextEmbeddings,
    prompts: Sequence[ClassPrompt],
    tower: VisionTower,
    read: Reader,
) -> TextEmbeddings:
    """Put reference pictures into the embeddings of classes, a prompt for each of the first.

    ``tower`` is the CLIP's own, not a distilled one: it embeds crops. Every word of a class with
    references gets the embedding of the class.
    """
    rows = embeddings.embeddings_KD.clone()
    words, word_class = embeddings.by_word()
    words = words.clone()
    for number, prompt in enumerate(prompts):
        if prompt.references:
            seen = embed_references(tower, prompt.references, read).mean(0)
            # The sum of two unit vectors points halfway between them.
            row = F.normalize(seen, dim=0) + (rows[number] if prompt.words else 0)
            rows[number] = F.normalize(row, dim=0)
            # Words that are scored one by one must not outvote the references.
            words[word_class == number] = rows[number]
    by_word = None if embeddings.words_WD is None else words
    return replace(embeddings, embeddings_KD=rows, words_WD=by_word)


@torch.no_grad()
def embed_references(tower: VisionTower, references: Sequence[Any], read: Reader) -> Tensor:
    """Embed pictures, or pairs of a picture and a box (XYXY px), as CLIP sees them cut out.

    Returns:
        (number of references, D) float32, unit norm, on the CPU.
    """
    crops = []
    for reference in references:
        picture, box = reference if isinstance(reference, tuple | list) else (reference, None)
        image = Image.fromarray(read(picture))
        box = (0, 0, *image.size) if box is None else tuple(float(side) for side in box)
        if len(box) != 4 or not (
            0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height
        ):
            raise ValueError(
                f"reference box {box} is no (left, top, right, bottom) inside of its picture of "
                f"{image.width} x {image.height} px"
            )
        crops.append(cut_crops(image, np.asarray([box]), tower.image_size)[0])
    pixels = prepare_pixels(tower, crops, tower.image_size, tower.image_size)
    return F.normalize(tower.forward_image(pixels).float(), dim=1).cpu()
