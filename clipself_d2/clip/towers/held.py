"""What is computed of frozen weights, held until they change."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class Held:
    """Values by name, each with the frozen tensors that it was made of."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[object, ...], list[Tensor], Any]] = {}

    def get(
        self, name: str, key: object, sources: Sequence[Tensor], make: Callable[[], Value]
    ) -> Value:
        """Look up the last value of a name, or make it of its sources and of the rest of the key.

        It is made anew where a source is trained, so that gradients reach it, and where the
        call is traced, for an export for example, whose tensors are of no use afterwards.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            return make()
        if any(source.requires_grad or source.is_inference() for source in sources):
            return make()
        # Tensors of inference mode are of no use outside.
        state = [(source.data_ptr(), source._version) for source in sources]
        stamp = (key, torch.is_inference_mode_enabled(), *state)
        if name not in self._kept or self._kept[name][0] != stamp:
            # The sources' memory is kept, so that no other weights can come to its address.
            self._kept[name] = (stamp, [source.detach() for source in sources], make())
        value: Value = self._kept[name][2]
        return value

    def __deepcopy__(self, memo: dict[int, object]) -> "Held":
        """A copy of a tower begins with nothing."""
        return Held()

    def __reduce__(self) -> tuple[type["Held"], tuple[()]]:
        """So does one that is read from a file."""
        return Held, ()


def narrow_copy(block: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a block with matrices in bfloat16 or float16, in which autocast multiplies them.

    Norms and scales, which autocast computes in float32, stay as they are.
    """
    twin = copy.deepcopy(block)
    for module in twin.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return twin


def working_blocks(
    blocks: Sequence[nn.Module], held: Held, dtype: torch.dtype | None
) -> list[nn.Module]:
    """Choose the blocks to compute with: narrow copies, in autocast's number type, of frozen ones.

    Frozen weights would else be cast at every use. A number type of None, outside of autocast,
    wants no copies.
    """
    working = []
    for number, block in enumerate(blocks):
        sources = list(block.parameters())
        if dtype is not None and not any(source.requires_grad for source in sources):
            make = partial(narrow_copy, block, dtype)
            twin = held.get(f"block {number}", dtype, sources, make)
            if twin.training != block.training:
                twin.train(block.training)
            working.append(twin)
        else:
            working.append(block)
    return working
