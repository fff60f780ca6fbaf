"""The image tower runs once for any number of vocabularies, and its map embeds boxes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipself_d2.apps.predict.encoded import dense_map, embed_boxes, kept_features
from clipself_d2.apps.predict.predictor import OpenVocabPredictor


def test_the_tower_runs_once_for_three_vocabularies(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    tower, runs = predictor.model.backbone.bottom_up.tower, []
    tower.register_forward_hook(lambda *_: runs.append(1))
    run = tower.forward_dense
    tower.forward_dense = lambda *args, **options: runs.append(1) or run(*args, **options)
    encoded = predictor.encode(pictures[0])
    for words in (["dog", "police car"], ["apple"], ["dog", "police car"]):
        predictor.set_classes(words)
        kept = predictor(encoded)["instances"]
        assert len(runs) == 1
        count = len(runs)
        fresh = predictor(pictures[0])["instances"]
        runs[:] = runs[:count]
        assert len(kept) > 0
        assert torch.equal(kept.scores, fresh.scores)
        assert torch.equal(kept.pred_boxes.tensor, fresh.pred_boxes.tensor)


def test_detections_have_embeddings_on_wish(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    encoded = predictor.encode(pictures[0])
    both = predictor([pictures[1], pictures[0]], embeddings=True)
    found = both[1]["instances"]
    assert torch.allclose(found.embeddings.norm(dim=1), torch.ones(len(found)), atol=1e-5)
    alone = predictor(encoded, embeddings=True)["instances"].embeddings
    torch.testing.assert_close(found.embeddings, alone, atol=1e-4, rtol=1e-4)
    assert not predictor(encoded)["instances"].has("embeddings")


def test_a_box_embeds_to_the_mean_of_its_cells() -> None:
    dense = F.normalize(torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0)), dim=0)
    # Cells of 8 px; the picture is half as large as the model's input.
    row = embed_boxes(dense, 8.0, torch.tensor([[4.0, 0.0, 12.0, 8.0]]), (2.0, 2.0))
    expected = F.normalize(dense[:, 0:2, 1:3].mean((1, 2)), dim=0)
    torch.testing.assert_close(row[0], expected, atol=1e-5, rtol=1e-5)


class Doubler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(1, 1)


def test_the_model_is_as_before_afterwards() -> None:
    model = Doubler()
    picture = torch.ones(1, 1)
    expected = model.backbone(picture)
    with kept_features(model, torch.zeros(1)):
        assert model.backbone(picture) == 0
    assert torch.equal(model.backbone(picture), expected)
    assert "forward" not in vars(model.backbone)


def test_a_model_without_a_map_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no dense CLIP map"):
        dense_map(nn.Linear(1, 1), {})
