"""Clocks and scales of the benchmark: medians, peak memory, the device's matrix-product peak."""

import contextlib
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
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]
Row = dict[str, object]

MIB = 2**20
# Calls of CUDA that put work on the device.
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMem")
# Side of the square matrices of the matrix-product peak.
_PEAK_SIDE = {"cuda": 8192, "cpu": 1536}


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure, and how large.

    Attributes:
        device: cpu or cuda.
        model: Name of the detector's and the text's CLIP; weights are random.
        sizes: Sides of the square images of the detector, px.
        cases: Models and sides of the square images of the distillation, the most telling first.
        batches: Images in a step of the distillation, all cases of one before the next.
        compile_modes: Our variants of the distillation and of the detector, as MODEL.CLIP.COMPILE.
        detector_batches: Pictures in a step of the detector.
        minutes: Time after which the distillation, and the detector, begin no other case.
        precision: Number type of our variants: fp32, bf16, fp16 or auto.
        repeats: Measured runs of every variant; their median is reported.
        num_crops: Regions of the image in a distillation step, at most 16.
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
    cases: tuple[tuple[str, int], ...] = (("ViT-B-16-quickgelu", 256),)
    batches: tuple[int, ...] = (2,)
    compile_modes: tuple[str, ...] = ("off", "blocks")
    detector_batches: tuple[int, ...] = (1,)
    minutes: float = 60.0
    precision: str = "auto"
    repeats: int = 5
    num_crops: int = 13
    regions: tuple[int, int] = (32, 64)
    scale: float = 0.1
    reference: bool = False
    text_classes: int = 2
    class_counts: tuple[int, ...] = (65, 1203, 13204)
    isolated: bool = True


class Launches(NamedTuple):
    """What one run of a step gives a device to do.

    Attributes:
        launched: Kernels, copies and recorded graphs that the processor launches on a GPU;
            operations of torch on a CPU.
        casts: Changes of a number type outside of compiled graphs.
        busy: Time that the GPU works, s; 0 on a CPU.
    """

    launched: int
    casts: int
    busy: float


class Memory(NamedTuple):
    """Memory of a repeated step, MiB.

    Attributes:
        total: Peak above what was there before the model was built.
        step: Peak above what stays between two steps (weights, optimizer state).
    """

    total: float
    step: float


def clock(device: str) -> Callable[[], float]:
    """Choose the clock of a device, s, which waits until its work is done.

    On a CPU with one thread it is the processor's own, since other programs count in the wall's.
    """
    if device == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def now() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return now


def median_seconds(steps: Mapping[str, Step], repeats: int, device: str) -> dict[str, float]:
    """Time steps in turns, so that a busy machine slows all alike; a first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    now = clock(device)
    for number in range(-1, repeats):
        for name, step in steps.items():
            start = now()
            step()
            if number >= 0:
                seconds[name].append(now() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(build: Callable[..., Step], *args: object, options: BenchmarkOptions) -> Memory:
    """Measure the peak memory of a step that follows another one.

    On the CPU it is resident memory, in a fresh process where the options say so; on CUDA it is
    that of the allocator. ``build`` is importable, and its arguments can be pickled.
    """
    job = (build, args, options.device, torch.get_num_threads())
    if options.device != "cpu" or not options.isolated:
        return _step_memory(*job)
    # A spawned process inherits nothing, and forgets all when it ends.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_step_memory, *job).result()


def _step_memory(
    build: Callable[..., Step], args: tuple[object, ...], device: str, num_threads: int
) -> Memory:
    torch.set_num_threads(num_threads)
    before = _memory_now(device)
    step = build(*args)
    step()
    state = _memory_now(device)
    step()
    # VmHWM is the largest resident size since clear_refs was written.
    peak = torch.cuda.max_memory_allocated() if device != "cpu" else _status_bytes("VmHWM")
    return Memory(max(0, peak - before) / MIB, max(0, peak - state) / MIB)


def _memory_now(device: str) -> int:
    """Hand back what is free, tell what is in use, and begin to watch for a peak; bytes."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        raise ValueError("memory on the CPU is read from Linux's /proc; use --device cuda")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    # Without this right the peak is that of the process's whole life, in which the first step needs
    # no less than the second.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def matrix_peak(device: str, dtype: torch.dtype) -> float:
    """Measure what the device reaches on large matrix products, FLOP/s of the fastest."""
    side = _PEAK_SIDE[device]
    matrix = torch.randn(side, side, device=device).to(dtype)
    best, now = float("inf"), clock(device)
    for _ in range(7):
        start = now()
        torch.mm(matrix, matrix)
        best = min(best, now() - start)
    # A multiplication and an addition for each of side**3 products.
    return 2 * side**3 / best


def launches(step: Step, device: str) -> Launches:
    """Watch one run of a step that is warmed up."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device != "cpu")
    # The step's work is asynchronous: the clock waits for it inside of the block.
    with profile(activities=activities) as profiler:
        step()
        clock(device)()
    events = profiler.events()
    prefixes = _LAUNCHES if device != "cpu" else ("aten::",)
    on_device = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return Launches(
        sum(event.name.startswith(prefixes) for event in events),
        sum(event.name == "aten::_to_copy" for event in events),
        sum(event.time_range.elapsed_us() for event in on_device) / 1e6,
    )


def machine(device: str) -> Row:
    """Describe where the figures come from, for JSON."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="replace").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"CPU {names[0]}" if names else "CPU"
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else processor,
        "threads": torch.get_num_threads(),
        "clock": "processor" if clock(device) is time.process_time else "wall",
        "torch": torch.__version__,
    }
