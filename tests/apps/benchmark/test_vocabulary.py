from inspect import getclosurevars, unwrap

import pytest
import torch
from detectron2.data import MetadataCatalog
from torch import nn

from clipself_d2.apps.benchmark.vocabulary import (
    FREQUENCIES,
    HEAD_REGIONS,
    OneByOne,
    build_head,
    lvis_dataset,
)
from clipself_d2.clip import load_clip


def test_one_by_one_gives_the_embeddings_of_a_batch() -> None:
    encoder = load_clip("ViT-Ti-8-emoji").text
    texts = ["a dog", "two cats and a dog"]
    torch.testing.assert_close(OneByOne(encoder).encode(texts), encoder.encode(texts))


@pytest.mark.parametrize("task", HEAD_REGIONS)
def test_a_run_leaves_nothing_behind_for_the_next(task: str) -> None:
    step = build_head(12, "cpu", task)
    step()
    kept = list(getclosurevars(unwrap(step)).nonlocals.values())
    tensors = [value for value in kept if isinstance(value, torch.Tensor)]
    tensors += [p for value in kept if isinstance(value, nn.Module) for p in value.parameters()]
    assert tensors, "the step holds its head"
    assert all(tensor.grad is None for tensor in tensors)


def test_detections_lie_near_their_objects_and_the_data_set_is_forgotten() -> None:
    with lvis_dataset(0.001) as (name, found):
        assert name in MetadataCatalog.list()
        assert len(found) == 20
        assert sum(len(instances) for _, instances in found) == 450
        assert [number for number, _ in found] == list(range(1, 21))
        for _, instances in found:
            boxes = instances.pred_boxes.tensor
            assert (boxes[:, 2:] - boxes[:, :2]).min() > 1.99
            assert instances.pred_classes.min() >= 0
            assert instances.pred_classes.max() < len(FREQUENCIES)
    assert name not in MetadataCatalog.list()
