"""Where a detector makes the host wait for the device, and what it finds in batches."""

from collections import Counter
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipself_d2.data.build import (
    build_detection_test_loader_from_cfg,
    build_detection_train_loader_from_cfg,
)

TESTS = "emoji_ov_val"
# Operators whose result the host has to know.
WAITING = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select")


class Waits(TorchDispatchMode):
    """Counts them; an index by a mask is one, since it looks for what is true."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = str(func).removeprefix("aten.").split(".")[0]
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or name in WAITING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def detector(emoji_cfg) -> tuple[Any, nn.Module]:
    cfg = emoji_cfg("fvit_untouched", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def test_detections_of_a_batch_are_those_of_its_pictures(detector) -> None:
    cfg, model = detector
    [batch, *_] = build_detection_test_loader_from_cfg(cfg, TESTS, batch_size=3)
    model.eval()
    with torch.no_grad():
        together = [output["instances"] for output in model(batch)]
        alone = [model([item])[0]["instances"] for item in batch]
    assert len(batch) == 3
    for one, other in zip(together, alone, strict=True):
        assert len(one) > 10
        assert torch.equal(one.pred_classes, other.pred_classes)
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            one.pred_boxes.tensor, other.pred_boxes.tensor, rtol=0, atol=1e-3
        )


@pytest.mark.parametrize(("task", "most"), [("training", 38), ("inference", 14)])
def test_host_waits_no_more_often_than_stated(detector, task: str, most: int) -> None:
    cfg, model = detector
    if task == "training":
        batch = next(iter(build_detection_train_loader_from_cfg(cfg)))
    else:
        batch = next(iter(build_detection_test_loader_from_cfg(cfg, TESTS)))
    model.train(task == "training")
    with EventStorage(), torch.no_grad(), Waits() as waits:
        model(batch)
    # All but a few are Detectron2's own: its samplers, checks, and logs of accuracy.
    assert waits.counts.total() <= most
