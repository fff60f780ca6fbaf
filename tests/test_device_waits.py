"""Steps on a GPU: the processor goes ahead and never waits for a number of the device.

The GPU is one that is not there: shapes and devices of a step without its values. What would wait
for a value cannot have it, and is found.
"""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from clipself_d2.data.datasets.refcoco import register_emoji_refer
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.trainer import Trainer

OURS = str(Path(__file__).parents[1] / "clipself_d2")
# Operations whose result, or its size, depends on what a tensor holds.
ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


class DeviceWaits(TorchDispatchMode):
    """Notes, with their place in our code, where the processor would wait for the GPU.

    What is asked of tensors on the CPU, whose values are not known here either, gets an answer: the
    number 0, and no elements.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.copies = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        first = next((x for x in args if isinstance(x, Tensor)), None)
        on_device = first is not None and first.device.type == "cuda"
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in ASKING or masked:
            if on_device:
                self._note(name)
            return self._answer(name, args)
        result = func(*args, **kwargs)
        if name == "_to_copy" and first.device != result.device:
            self.copies += 1
            if not kwargs.get("non_blocking"):
                self._note(f"blocking copy to {result.device.type}")
        if name == "copy_" and args[0].device != args[1].device:
            self.copies += 1
            if not (args[2:] or (kwargs.get("non_blocking"),))[0]:
                self._note(f"blocking copy to {args[0].device.type}")
        return result

    def _answer(self, name: str, args: tuple) -> Any:
        first = args[0]
        if name == "_local_scalar_dense":
            return 0
        if name == "equal":
            return True
        if name == "nonzero":
            return first.new_empty((0, first.dim()), dtype=torch.int64)
        if name == "_unique2":
            return first.new_empty(0), first.new_empty(0), first.new_empty(0)
        if name == "index_put_":
            return first
        return first.new_empty((0, *first.shape[1:]))

    def _note(self, what: str) -> None:
        stack = traceback.extract_stack()
        frame = [stack[0], *(each for each in stack if each.filename.startswith(OURS))][-1]
        self.found.append(f"{what} in {Path(frame.filename).name}: {frame.line}")


def to_fake_gpu(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers, in place, by such of a GPU that is not there."""
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                fake: Tensor = mode.from_tensor(tensor.detach()).to("cuda")
            if isinstance(tensor, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
            made[id(tensor)] = (tensor, fake)
        return made[id(tensor)][1]

    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            kept.update({name: moved(value) for name, value in kept.items() if value is not None})


def to_fake(value: Any, mode: FakeTensorMode) -> Any:
    """Replace tensors of a batch by such without values, on the CPU as they are."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if isinstance(value, list | tuple):
        return type(value)(to_fake(item, mode) for item in value)
    if isinstance(value, dict):
        return {key: to_fake(item, mode) for key, item in value.items()}
    return value


def waits_of(cfg, trainer: type[Trainer]) -> DeviceWaits:
    """Take a step of a model on a GPU that is not there."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    items = next(iter(trainer.build_train_loader(cfg)))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    to_fake_gpu(model, mode)
    with mode, EventStorage():
        batch = to_fake(items, mode)
        waits = DeviceWaits()
        with waits:
            losses = model(batch)
    assert all(loss.device.type == "cuda" for loss in losses.values())
    return waits


TERMS = "MODEL.DISTILL.TERMS"


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("clipself_patches", ()),
        ("declip", ()),
        ("densevlm", (TERMS, [{"loss": "vocabulary"}])),
        ("sc_clipself", ()),
        ("synclip", ()),
        ("region_text", ()),
    ],
)
def test_a_distiller_asks_nothing_of_the_device(emoji_cfg, name, keys):
    waits = waits_of(emoji_cfg(name, *keys), DistillTrainer)
    assert waits.found == []
    assert waits.copies > 3, "pictures and boxes are moved"


def test_cris_asks_nothing_of_the_device(emoji_cfg, emoji_root, catalogs):
    register_emoji_refer(emoji_root, prefix="tiny")
    assert waits_of(emoji_cfg("cris", "DATASETS.TRAIN", ("tiny_refer_train",)), Trainer).found == []


def test_cat_seg_asks_nothing_of_the_device(emoji_cfg):
    assert waits_of(emoji_cfg("catseg_untouched"), Trainer).found == []


def test_what_is_asked_is_found():
    mode, waits = FakeTensorMode(allow_non_fake_inputs=True), DeviceWaits()
    with mode:
        tensor = torch.zeros(4).to("cuda")
        with waits:
            tensor.cpu()
            float(tensor.sum())
            tensor[tensor > 0]
            torch.zeros(3).to("cuda", non_blocking=True)
            torch.zeros(3).to("cuda")
    assert [text.split(" in ")[0] for text in waits.found] == [
        "blocking copy to cpu",
        "_local_scalar_dense",
        "index",
        "blocking copy to cuda",
    ]
