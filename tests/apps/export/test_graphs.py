"""Graphs: inputs of several sizes, and a model that is left as it was."""

import torch

from clipself_d2.apps.export.graphs import model_graph, tower_graph
from clipself_d2.clip import load_tower
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer


def test_a_tower_takes_pixels_as_they_are_read() -> None:
    tower = load_tower("ViT-Ti-8-emoji", "emoji")
    graph = tower_graph(tower, (2,))
    (images,) = graph.example(1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.pixel_mean, tower.pixel_std))
    with torch.no_grad():
        dense, block = graph.module(images)
        expected = tower.forward_dense((images - mean) / std, (2,))
    torch.testing.assert_close(dense, expected.embedding)
    torch.testing.assert_close(block, expected.blocks[0])


def test_a_graph_leaves_the_classes_of_its_model() -> None:
    cfg = load_config("configs/emoji/retinanet.yaml", [])
    model = Trainer.build_model(cfg).eval()
    former = model.classifier.embeddings_KD
    graph = model_graph(model, cfg)
    with torch.no_grad():
        graph.module(*graph.example(0))
    assert model.classifier.embeddings_KD is former
    assert [len(graph.example(number)[1]) for number in range(3)] == [5, 2, 9]
