"""The benchmark: its parts, their tables, and a report."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from clipself_d2.apps.benchmark.measure import (
    MIB,
    BenchmarkOptions,
    Row,
    Step,
    machine,
    matrix_peak,
    median_seconds,
    peak_memory,
)
from clipself_d2.apps.benchmark.segmentation import measure_aggregation, measure_joining
from clipself_d2.apps.benchmark.steps import (
    build_detector,
    build_detector_step,
    build_ours,
    build_plain,
    detector_step,
    watch_tower,
)
from clipself_d2.apps.benchmark.vocabulary import (
    FREQUENCIES,
    HEAD_REGIONS,
    OneByOne,
    build_head,
    lvis_dataset,
)
from clipself_d2.clip import load_clip
from clipself_d2.clip.precision import compute_context
from clipself_d2.evaluation import LVISOVEvaluator
from clipself_d2.parts.json_file import write_json
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.embeddings import SentenceEncoder

logger = logging.getLogger(__name__)

# What fits the device: the published sizes on a GPU, what a laptop can do on a CPU (there few
# regions, so that the ViT is still most of the work at small sizes). A class has 63 prompts.
DEFAULTS: dict[str, Row] = {
    "cuda": {"sizes": (1024, 512), "regions": (512, 1000), "text_classes": 1203},
    "cpu": {"sizes": (384, 256), "regions": (32, 64), "text_classes": 2},
}
Report = dict[str, object]

# The plain version comes first: the others are compared with it.
DISTILL_VARIANTS: dict[str, tuple[Callable[..., Step], tuple[object, ...]]] = {
    "plain": (build_plain, ()),
    "ours": (build_ours, ()),
    "ours, crops resized in the step": (build_ours, (True,)),
}
DETECTOR_VARIANTS = {"two passes, graph": True, "ours": False}


def _distill(options: BenchmarkOptions) -> list[Row]:
    """A step of CLIPSelf; ratios compare with the plain version, above 1 we are better."""
    with compute_context(torch.device(options.device), options.precision):
        halved = torch.is_autocast_enabled(options.device)
        ours = torch.get_autocast_dtype(options.device) if halved else torch.float32
    plain = torch.float16 if options.device == "cuda" else torch.float32
    dtypes = {name: plain if name == "plain" else ours for name in DISTILL_VARIANTS}
    peaks = {dtype: matrix_peak(options.device, dtype) for dtype in {ours, plain}}
    rows: list[Row] = []
    for size in options.sizes:
        memory = {
            name: peak_memory(build, options, size, *more, options=options)
            for name, (build, more) in DISTILL_VARIANTS.items()
        }
        steps = {
            name: build(options, size, *more) for name, (build, more) in DISTILL_VARIANTS.items()
        }
        flops = {name: _flops(step) for name, step in steps.items()}
        # Counting has warmed them up.
        seconds = median_seconds(steps, options.repeats, options.device, warm_up=False)
        for name in DISTILL_VARIANTS:
            reached = flops[name] / seconds[name]
            rows.append(
                {
                    "size": size,
                    "variant": name,
                    "type": str(dtypes[name]).removeprefix("torch."),
                    "images/s": 1 / seconds[name],
                    "speed ratio": seconds["plain"] / seconds[name],
                    "peak MiB": memory[name].total,
                    "peak ratio": memory["plain"].total / max(1, memory[name].total),
                    "step MiB": memory[name].step,
                    "step ratio": memory["plain"].step / max(1, memory[name].step),
                    "GFLOP": flops[name] / 1e9,
                    "GFLOP/s": reached / 1e9,
                    "share of product peak": reached / peaks[dtypes[name]],
                }
            )
    return rows


def _flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _detector(options: BenchmarkOptions) -> list[Row]:
    """Training step and inference of F-ViT; ratios compare with the careless variant."""
    detectors = {
        name: build_detector(options, careless) for name, careless in DETECTOR_VARIANTS.items()
    }
    cases = [(size, task) for size in options.sizes for task in HEAD_REGIONS]
    rows: list[Row] = []
    for size, task in cases:
        memory = {
            name: peak_memory(build_detector_step, options, size, task, careless, options=options)
            for name, careless in DETECTOR_VARIANTS.items()
        }
        steps = {name: detector_step(*parts, size, task) for name, parts in detectors.items()}
        seconds = median_seconds(steps, options.repeats, options.device)
        first = next(iter(detectors))
        for name, (_, backbone) in detectors.items():
            with watch_tower(backbone) as watch:
                steps[name]()
            rows.append(
                {
                    "size": size,
                    "task": task,
                    "regions": options.regions[task == "inference"],
                    "variant": name,
                    "images/s": 1 / seconds[name],
                    "speed ratio": seconds[first] / seconds[name],
                    "tower passes": watch["passes"],
                    "saved MiB": watch["bytes"] / MIB,
                    "peak MiB": memory[name].total,
                    "step MiB": memory[name].step,
                    "step ratio": memory[first].step / max(1, memory[name].step),
                }
            )
    return rows


def _evaluation(options: BenchmarkOptions) -> list[Row]:
    """Scoring of made-up detections of LVIS val's size; the reference scorer runs once."""
    rows: list[Row] = []
    with lvis_dataset(options.scale) as (name, found):
        for backend in ("lvis", "hotcoco") if options.reference else ("hotcoco",):
            evaluator = LVISOVEvaluator(name, ("bbox",), distributed=False, backend=backend)
            evaluator.reset()
            start = time.perf_counter()
            for image_id, instances in found:
                evaluator.process([{"image_id": image_id}], [{"instances": instances}])
            collected, seconds, scores = time.perf_counter() - start, [], {}
            # By the wall, since the fast scorer has several threads.
            for _ in range(options.repeats if backend == "hotcoco" else 1):
                start = time.perf_counter()
                scores = evaluator.evaluate()["bbox"]
                seconds.append(time.perf_counter() - start)
            rows.append(
                {
                    "scorer": backend,
                    "images": len(found),
                    "detections": sum(len(instances) for _, instances in found),
                    "classes": len(FREQUENCIES),
                    "collect s": collected,
                    "score s": statistics.median(seconds),
                    "AP": scores["AP"],
                    "APr": scores["APr"],
                }
            )
    for row in rows if options.reference else ():
        row["speed ratio"] = rows[0]["score s"] / row["score s"]  # type: ignore[operator]
    return rows


def _text(options: BenchmarkOptions) -> list[Row]:
    """Prompted text embeddings in batches and sentence by sentence."""
    torch.manual_seed(0)
    encoder = load_clip(options.model).text.to(options.device)
    names = [f"thing number {number}" for number in range(options.text_classes)]
    vocabulary = Vocabulary.from_names(names)
    built: dict[str, TextEmbeddings] = {}

    def step(name: str, source: SentenceEncoder) -> Step:
        def run() -> None:
            built[name] = TextEmbeddings.build(
                source, vocabulary, clip=options.model, templates="vild"
            )

        return run

    sources: dict[str, SentenceEncoder] = {"one by one": OneByOne(encoder), "ours": encoder}
    steps = {name: step(name, source) for name, source in sources.items()}
    seconds = median_seconds(steps, options.repeats, options.device)
    reference = built["one by one"].embeddings_KD
    # The background is prompted too.
    prompts = 63 * (options.text_classes + 1)
    return [
        {
            "variant": name,
            "classes": options.text_classes,
            "prompts": prompts,
            "prompts/s": prompts / seconds[name],
            "speed ratio": seconds["one by one"] / seconds[name],
            "largest difference": float((built[name].embeddings_KD - reference).abs().max()),
        }
        for name in steps
    ]


def _classes(options: BenchmarkOptions) -> list[Row]:
    """The ROI head's predictor with more and more classes; ``time ratio`` is over the fewest."""
    rows: list[Row] = []
    for task, regions in HEAD_REGIONS.items():
        steps = {str(k): build_head(k, options.device, task) for k in options.class_counts}
        seconds = median_seconds(steps, options.repeats, options.device)
        for count in options.class_counts:
            memory = peak_memory(build_head, count, options.device, task, options=options)
            rows.append(
                {
                    "task": task,
                    "regions": regions,
                    "classes": count,
                    "ms": 1000 * seconds[str(count)],
                    "time ratio": seconds[str(count)] / seconds[str(options.class_counts[0])],
                    "step MiB": memory.step,
                }
            )
    return rows


PARTS: dict[str, Callable[[BenchmarkOptions], list[Row]]] = {
    "distill": _distill,
    "detector": _detector,
    "evaluation": _evaluation,
    "text": _text,
    "classes": _classes,
    "segmentation": measure_aggregation,
    "windows": measure_joining,
}


def run_benchmark(parts: Sequence[str], options: BenchmarkOptions) -> Report:
    """Measure some parts.

    Args:
        parts: Names in ``PARTS``.
        options: What to measure.

    Returns:
        ``machine``, ``options``, and the rows of each part.

    Raises:
        ValueError: If a number is out of range.
    """
    if min(options.repeats, options.text_classes, *options.sizes) < 1:
        raise ValueError("--repeats, --classes and --size are positive numbers")
    if not 0 < options.scale <= 1:
        raise ValueError(f"--scale is {options.scale}; it is a share of LVIS val in (0, 1]")
    report: Report = {"machine": machine(options.device), "options": vars(options)}
    # The evaluators' tables would stand between ours.
    evaluators = logging.getLogger("clipself_d2.evaluation")
    level = evaluators.level
    evaluators.setLevel(logging.WARNING)
    try:
        for part in parts:
            logger.info("measuring %s", part)
            report[part] = PARTS[part](options)
    finally:
        evaluators.setLevel(level)
    return report


def tables(report: Report) -> str:
    """Lay a report out for the terminal, in Markdown.

    Args:
        report: Of ``run_benchmark``.

    Returns:
        A heading and a table for every part.
    """
    about = report["machine"]
    assert isinstance(about, dict), f"the report's machine is {type(about)}"
    lines = [
        f"{about['device']}, {about['threads']} thread(s), torch {about['torch']}; medians of "
        f"{about['clock']} time"
    ]
    for part in PARTS:
        if part in report:
            rows: object = report[part]
            table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g")  # type: ignore[call-overload]
            lines += ["", f"## {part}", "", table]
    return "\n".join(lines)


def write_report(report: Report, output: Path) -> None:
    """Write a report as JSON.

    Args:
        report: Of ``run_benchmark``.
        output: File to write.
    """
    write_json(output, report, indent=1)
    logger.info("figures in %s", output)
