"""Clocks and scales of the benchmark: medians, peak memory, the device's matrix-product peak."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from clipself_d2.clip.precision import cpu_has_bf16

Step = Callable[[], object]
Row = dict[str, object]

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 2**20
# Side of the square matrices of the matrix-product peak.
_PEAK_SIDE = {"cuda": 8192, "cpu": 1536}
_PEAK_REPEATS = 7


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure, and how large.

    Attributes:
        device: cpu or cuda.
        model: Name of a CLIP; its weights are random.
        sizes: Sides of the square images, px.
        precision: Number type of our variants: fp32, bf16 or auto.
        repeats: Measured runs of every variant; their median is reported.
        num_crops: Regions of the image in a distillation step.
        regions: Regions of an image in the detector's ROI heads, in training and at test time.
        scale: Share of LVIS val in the evaluation, in (0, 1].
        reference: Whether the reference scorer runs too.
        text_classes: Classes whose prompts are embedded.
        class_counts: Vocabulary sizes of the ROI head.
        isolated: Whether memory on the CPU is measured in fresh processes; needed for figures that
            mean something.
    """

    device: str = "cpu"
    model: str = "ViT-B-16-quickgelu"
    sizes: tuple[int, ...] = (384, 256)
    precision: str = "auto"
    repeats: int = 5
    num_crops: int = 13
    regions: tuple[int, int] = (32, 64)
    scale: float = 0.1
    reference: bool = False
    text_classes: int = 2
    class_counts: tuple[int, ...] = (65, 1203, 13204)
    isolated: bool = True


@dataclass(frozen=True)
class Memory:
    """Memory of a repeated step.

    Attributes:
        total: Peak above what was there before the model was built, bytes.
        step: Peak above what stays between two steps (weights, optimizer state), bytes.
    """

    total: int
    step: int


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given.

    Args:
        device: cpu or cuda.
    """
    if device != "cpu":
        torch.cuda.synchronize()


def clock(device: str) -> Callable[[], float]:
    """Choose the clock of a device.

    Args:
        device: cpu or cuda.

    Returns:
        Function that tells a time, s: the processor's own time on a CPU with one thread, where
        other programs would count in the wall's; else the wall's.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def median_seconds(
    steps: Mapping[str, Step], repeats: int, device: str, *, warm_up: bool = True
) -> dict[str, float]:
    """Time several steps in turns, so that a busy machine slows all of them alike.

    Args:
        steps: Steps by name.
        repeats: Measured rounds, at least 1.
        device: cpu or cuda.
        warm_up: Whether there is a round before them, which does not count.

    Returns:
        Median time of one run by name, s, of ``clock``.

    Raises:
        ValueError: If ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"--repeats is {repeats}; it must be at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    now = clock(device)
    for number in range(-warm_up, repeats):
        for name, step in steps.items():
            synchronize(device)
            start = now()
            step()
            synchronize(device)
            if number >= 0:
                seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(build: Callable[..., Step], *args: object, device: str, isolated: bool) -> Memory:
    """Measure the peak memory of a step that follows another one.

    On the CPU it is resident memory, in a fresh process where ``isolated`` says so; on CUDA it is
    that of the allocator.

    Args:
        build: Importable function that makes the step.
        args: Its arguments; what can be pickled.
        device: cpu or cuda.
        isolated: Whether to start a process, on the CPU.

    Returns:
        The memory.
    """
    if device != "cpu" or not isolated:
        return _step_memory(build, args, device)
    # A spawned process inherits nothing, and forgets all when it ends.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_step_memory, build, args, device, torch.get_num_threads()).result()


def _step_memory(
    build: Callable[..., Step], args: tuple[object, ...], device: str, num_threads: int = 0
) -> Memory:
    if num_threads:
        torch.set_num_threads(num_threads)
    before = memory_now(device)
    step = build(*args)
    step()
    restart_peak(device)
    state = memory_now(device)
    step()
    synchronize(device)
    peak = memory_peak(device)
    return Memory(total=max(0, peak - before), step=max(0, peak - state))


def memory_now(device: str) -> int:
    """Tell how much memory is in use, after handing back what is free.

    Args:
        device: cpu or cuda.

    Returns:
        Bytes.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    return _status_bytes("VmRSS")


def restart_peak(device: str) -> None:
    """Forget the peak so far.

    Args:
        device: cpu or cuda.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        # Without this right the peak is that of the process's whole life, in which the first
        # step needs no less than the second.
        return


def memory_peak(device: str) -> int:
    """Tell the peak since ``restart_peak``.

    Args:
        device: cpu or cuda.

    Returns:
        Bytes.
    """
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    if not _STATUS.is_file():
        raise ValueError(
            "memory on the CPU is read from /proc/self/status, which this system lacks; use Linux, "
            "or --device cuda"
        )
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}; use --device cuda")


def compute_type(device: str, precision: str) -> torch.dtype:
    """Number type that a precision means on a device.

    Args:
        device: cpu or cuda.
        precision: fp32, bf16, fp16 or auto.

    Returns:
        The type of matrix products.
    """
    if precision == "fp16":
        return torch.float16
    if precision == "fp32" or (precision == "auto" and device == "cpu" and not cpu_has_bf16()):
        return torch.float32
    return torch.bfloat16


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Measure what the device reaches on one large matrix product.

    Args:
        device: cpu or cuda.
        dtype: Number type of the matrices.

    Returns:
        FLOP/s of the fastest of several products.
    """
    side = _PEAK_SIDE[device]
    matrix = torch.randn(side, side, device=device).to(dtype)
    best, now = float("inf"), clock(device)
    for _ in range(_PEAK_REPEATS):
        synchronize(device)
        start = now()
        torch.mm(matrix, matrix)
        synchronize(device)
        best = min(best, now() - start)
    return 2 * side**3 / best


def machine(device: str) -> Row:
    """Describe where the figures come from.

    Args:
        device: cpu or cuda.

    Returns:
        What JSON can hold.
    """
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else _processor(),
        "threads": torch.get_num_threads(),
        "clock": "processor" if clock(device) is time.process_time else "wall",
        "torch": torch.__version__,
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="replace").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU {names[0]}" if names else "CPU"
