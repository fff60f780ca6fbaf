"""Number types: of a tower's pictures and of its arithmetic."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
# Up to so many tokens a CPU is faster in bf16 with the attention matrix written out.
_SHORT = 128
_CPU_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


@cache
def cpu_has_bf16() -> bool:
    """Tell whether the processor is known to multiply bf16 matrices in hardware."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return False
    for line in listing.read_text(errors="replace").splitlines():
        if line.lower().startswith(("flags", "features")):
            return not set(_CPU_BF16_FLAGS).isdisjoint(line.split())
    return False


def check_precision(precision: str) -> None:
    """Raise a ValueError unless a precision is one of fp32, bf16, fp16 and auto."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {PRECISIONS}")


def check_images(images: Tensor, name: str) -> None:
    """Raise a ValueError unless pictures are (N, 3, H, W) in floating point; N may be 0."""
    if not isinstance(images, Tensor):
        got, hint = f"a {type(images).__name__}", "torch.stack makes one of a list"
    elif images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        got, hint = f"{tuple(images.shape)}", "images[None] makes a batch of one picture"
    elif not images.is_floating_point():
        got, hint = f"{images.dtype}", "normalise by the tower's pixel_mean and pixel_std first"
    else:
        return
    raise ValueError(
        f"{name} takes pictures as a tensor (N, 3, H, W) of normalised pixels, got {got}; {hint}"
    )


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bf16 matrices in hardware, so that "auto" is bf16 there."""
    if device.type == "cpu":
        return cpu_has_bf16()
    # Emulated bf16 of older GPUs is slower than float32.
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Tell in which number type autocast multiplies matrices at the moment; None outside of one."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def as_operand(tensor: Tensor) -> Tensor:
    """Cast what several products read to autocast's number type once, instead of for each."""
    dtype = autocast_dtype(tensor.device)
    return tensor if dtype is None else tensor.to(dtype)


@contextmanager
def compute_context(device: torch.device, precision: str, num_tokens: int = 0) -> Iterator[None]:
    """Run a with block in the number type asked for.

    "fp32" is the caller's own number type, which is lower inside an autocast; "auto" is bf16 where
    the device has it, else as fp32. ``num_tokens`` is the length T of the sequences that attend to
    themselves; 0 if that is not known.
    """
    check_precision(precision)
    if precision == "fp32" or (precision == "auto" and not has_bf16(device)):
        yield
        return
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, dtype=dtype):
        if device.type != "cpu" or num_tokens > _SHORT:
            yield
            return
        # The flash kernel's backward takes twice the time there; of long sequences the matrices
        # would be slower, and fill the memory: 0.8 GB a block of 12 heads and 4097 tokens.
        with sdpa_kernel(SDPBackend.MATH):
            yield
