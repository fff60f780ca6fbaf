"""Classes by example: crops are embedded, averaged, and mixed with the words."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.prompts import ClassPrompt
from clipself_d2.apps.predict.references import embed_references, with_references
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary


class MeanTower(torch.nn.Module):
    """Embeds a picture by the mean of its colours."""

    image_size, patch_size = 8, 4
    pixel_mean, pixel_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * self.scale


def picture() -> np.ndarray:
    """Red on the left, blue on the right."""
    image = np.zeros((16, 32, 3), np.uint8)
    image[:, :16, 0], image[:, 16:, 2] = 200, 200
    return image


def test_boxes_of_a_picture_are_what_is_embedded() -> None:
    boxes = [(picture(), (0, 0, 16, 16)), (picture(), (16, 0, 32, 16)), picture()]
    rows = embed_references(MeanTower(), boxes, lambda image: image)
    half = 2**-0.5
    expected = torch.tensor([[1.0, 0, 0], [0, 0, 1.0], [half, 0, half]])
    torch.testing.assert_close(rows, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("box", [(0, 0, 33, 16), (8, 0, 8, 16), (-1, 0, 8, 8), (0, 0, 8)])
def test_a_box_outside_of_its_picture_is_refused(box: tuple) -> None:
    with pytest.raises(ValueError, match="inside of its picture of 32 x 16 px"):
        embed_references(MeanTower(), [(picture(), box)], lambda image: image)


def test_references_are_averaged_with_the_words_or_stand_alone() -> None:
    rows = torch.eye(3)[[1, 1, 0]]
    vocabulary = Vocabulary(("a", "b", "no"), (True,) * 3, synonyms=(("c",), (), ()))
    words = torch.eye(3)[[1, 2, 1, 0]]
    text = TextEmbeddings(vocabulary, rows, None, "clip", "vild", "", words)
    red, blue = (picture(), (0, 0, 16, 16)), (picture(), (16, 0, 32, 16))
    prompts = [ClassPrompt("a;c", [red, blue]), ClassPrompt("b", [red], words=False)]
    mixed = with_references(text, prompts, MeanTower(), lambda image: image)
    both = F.normalize(torch.tensor([2**-0.5, 1.0, 2**-0.5]), dim=0)
    torch.testing.assert_close(mixed.embeddings_KD[0], both, atol=0.02, rtol=0)
    torch.testing.assert_close(mixed.embeddings_KD[1], torch.eye(3)[0], atol=0.02, rtol=0)
    assert torch.equal(mixed.embeddings_KD[2], rows[2])
    assert torch.equal(mixed.words_WD[0], mixed.embeddings_KD[0])
    assert torch.equal(mixed.words_WD[1], mixed.embeddings_KD[0])
    assert torch.equal(mixed.words_WD[3], words[3])


def test_a_predictor_takes_files_and_boxes(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    cfg = detector_cfg()
    # As trained: in smaller pictures the random detector may find nothing for the negative word.
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 144, "INPUT.MAX_SIZE_TEST", 192])
    cfg.MODEL.VOCABULARY.TEMPLATES = "emoji"
    predictor = OpenVocabPredictor(cfg, weights)
    plain = predictor.make_prompts(["dog", "owl"])
    example = ClassPrompt("dog", [pictures[0], (str(pictures[1]), (5, 5, 60, 60))], min_score=0.0)
    predictor.set_classes([example, "owl"], negative=["apple"])
    prompts = predictor.prompts
    assert (prompts.names, prompts.references) == (("dog", "owl"), (2, 0))
    assert not torch.equal(prompts.embeddings.embeddings_KD[0], plain.embeddings.embeddings_KD[0])
    assert torch.equal(prompts.embeddings.embeddings_KD[1], plain.embeddings.embeddings_KD[1])
    found = predictor(pictures[2])["instances"]
    assert set(found.pred_classes.tolist()) <= {0, 1}
    # Another set for one call changes nothing for the next.
    other = predictor(pictures[2], prompts=plain)["instances"]
    assert len(other) > len(found)
    assert torch.equal(predictor(pictures[2])["instances"].scores, found.scores)
