"""A GPU that the CPU plays, with values, for models without gradients.

Tensors of it are wrappers around tensors of the CPU, on which operations run. What a GPU refuses is
refused: a tensor of the CPU beside its own, an index of its own into the CPU, its memory as numpy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda:0")
# Operations that may have tensors of both.
MEETING = ("_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_")

# What torch.cuda says of it.
ANSWERS: dict[str, object] = {
    "_lazy_init": None,
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "is_initialized": False,
    "is_bf16_supported": True,
    "synchronize": None,
}


class Played(Tensor):
    """A tensor of the GPU; ``on_cpu`` is the CPU's."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "Played":
        with torch._C._DisableTorchDispatch():
            size = real.untyped_storage().nbytes() // max(1, real.element_size())
            shape = torch.empty(size, dtype=real.dtype, device="meta")
            shape = shape.as_strided(real.size(), real.stride(), real.storage_offset())
        played: Played = Tensor._make_subclass(
            cls, shape, dispatch_device=True, device_for_backend_keys=GPU
        )
        played.on_cpu = real
        return played

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def __repr__(self, **options: object) -> str:
        return f"Played({self.on_cpu})"

    def data_ptr(self) -> int:
        """Where the values are, which caches ask."""
        return self.on_cpu.data_ptr()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """Run an operation on the CPU, if a GPU would."""
    name = func.overloadpacket.__name__
    if name == "device":
        return GPU
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    has_own = any(isinstance(each, Played) for each in tensors)
    # A number without dimensions may come from the CPU.
    has_other = any(not isinstance(each, Played) and each.dim() > 0 for each in tensors)
    into_cpu = name.startswith("index") and has_own and not isinstance(args[0], Played)
    if into_cpu or (has_own and has_other and name not in MEETING):
        raise RuntimeError(f"{name} has tensors of the CPU and of the GPU")
    is_played = isinstance(args[0], Played) if name == "copy_" else has_own
    if kwargs.get("device") is not None:
        is_played = torch.device(kwargs["device"]).type in ("cuda", "meta")
        kwargs = {**kwargs, "device": "cpu"}
    with torch.no_grad():
        real = func(*_unwrapped(args), **_unwrapped(kwargs))
    if not is_played or name == "_local_scalar_dense":
        return real
    result = tree_map_only(Tensor, Played, real)
    return return_and_correct_aliasing(func, args, kwargs, result) if has_own else result


def _unwrapped(value: Any) -> Any:
    return tree_map_only(Played, lambda played: played.on_cpu, value)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch would ask the driver of a real GPU for."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = {key: _numbered(value) for key, value in (kwargs or {}).items()}
        args = tuple(_numbered(value) for value in args)
        first = args[0] if args else None
        name = getattr(func, "__name__", "")
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            return func(*args, **{**kwargs, "device": "cpu"}).to(GPU)
        if not isinstance(first, Played):
            return func(*args, **kwargs)
        if func == Tensor.tolist:
            return first.on_cpu.tolist()
        if func == Tensor.to:
            args = tuple(value for value in args if value != GPU)
            kwargs = {key: value for key, value in kwargs.items() if value is not GPU}
            kwargs.pop("non_blocking", None)
            return func(*args, **kwargs) if len(args) > 1 or kwargs else first
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            return func(first, _as_tensors(args[1]), *args[2:])
        if name.startswith("new_"):
            made = getattr(first.on_cpu, name)(*args[1:], **{**kwargs, "device": "cpu"})
            return made.to(kwargs.get("device", GPU))
        if func is torch.nn.functional.scaled_dot_product_attention:
            return Played(func(*_unwrapped(args), **_unwrapped(kwargs)))
        return func(*args, **kwargs)


def _numbered(value: Any) -> Any:
    is_gpu = isinstance(value, str | torch.device) and str(value) in ("cuda", "cuda:0")
    return GPU if is_gpu else value


def _as_tensors(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_as_tensors(each) for each in index)
    return torch.tensor(index) if isinstance(index, list) else index


@contextmanager
def played_gpu() -> Iterator[None]:
    """Play a GPU in a with block."""
    torch._C._ensureCUDADeviceGuardSet()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ANSWERS.items():
            patch.setattr(torch.cuda, name, lambda *args, value=value: value)
        # cuDNN's batch norm is an operation of its own.
        patch.setattr(torch.backends.cudnn, "enabled", False)
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        with _Operations(), _Functions():
            yield
