"""The benchmark: its parts, their tables, and a report."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, TypeVar

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from clipself_d2.apps.benchmark.data_feed import data_rows, padding_rows
from clipself_d2.apps.benchmark.distillation import (
    build_ours,
    build_published,
    number_type,
    published_type,
)
from clipself_d2.apps.benchmark.exported import export_rows
from clipself_d2.apps.benchmark.measure import (
    MIB,
    BenchmarkOptions,
    Launches,
    Row,
    Step,
    launches,
    machine,
    matrix_peak,
    median_seconds,
    peak_memory,
)
from clipself_d2.apps.benchmark.segmentation import measure_aggregation, measure_joining
from clipself_d2.apps.benchmark.steps import (
    build_detector,
    build_detector_step,
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
from clipself_d2.evaluation import LVISOVEvaluator
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.embeddings import SentenceEncoder

logger = logging.getLogger(__name__)

# What fits the device: the published sizes on a GPU, what a laptop can do on a CPU (there few
# regions, so that the ViT is still most of the work at small sizes). A class has 63 prompts.
DEFAULTS: dict[str, Row] = {
    "cuda": {
        "sizes": (1024, 512),
        "cases": (
            ("EVA02-B-16", 1024),
            ("EVA02-L-14-336", 896),
            ("EVA02-B-16", 512),
            ("ViT-B-16-quickgelu", 1024),
        ),
        "batches": (2, 8, 4),
        "minutes": 3.0,
        "detector_batches": (1, 8),
        "regions": (512, 1000),
        "text_classes": 5,
    },
    # Compiling takes minutes there; --compile asks for it.
    "cpu": {
        "sizes": (384, 256),
        "compile_modes": ("off",),
        "regions": (32, 64),
        "text_classes": 2,
    },
}
Report = dict[str, object]
Case = TypeVar("Case")
Variants = dict[str, tuple[Callable[..., Step], tuple[object, ...]]]

# Whether it is careless, and MODEL.CLIP.COMPILE.
CARELESS = {"two passes, graph": (True, "off")}


def _distill(options: BenchmarkOptions) -> list[Row]:
    """A step of CLIPSelf; ratios compare with the published step, above 1 we are better."""
    dtypes = {"published": published_type(options), "ours": number_type(options)}
    peaks = {dtype: matrix_peak(options.device, dtype) for dtype in {*dtypes.values()}}
    cases = [(*case, batch) for batch in options.batches for case in options.cases]
    rows: list[Row] = []
    for case in _while_there_is_time(cases, options):
        # Shapes of the last case would make this one's graphs those of any shape.
        torch.compiler.reset()
        variants: Variants = {"published": (build_published, (options, *case))}
        for mode in dict.fromkeys(("off", *options.compile_modes)):
            variants[f"ours, {mode}"] = (build_ours, (options, *case, mode))
        measured: dict[str, tuple[float, float, Launches, int]] = {}
        # On a GPU one after another, for its memory; on a CPU in turns, for a busy machine.
        names = [[name] for name in variants] if options.device == "cuda" else [[*variants]]
        for group in names:
            try:
                measured |= _measure({name: variants[name] for name in group}, options)
            except torch.OutOfMemoryError:
                logger.warning("%s: %s does not fit the memory", case, group)
        for name, (seconds, memory, launched, flops) in measured.items():
            dtype = dtypes[name.partition(",")[0]]
            # The counter does not see into graphs, whose products are those of the blocks.
            rate = (flops or measured["ours, off"][3]) / seconds
            row: Row = {
                **dict(zip(("model", "size", "images"), case, strict=True)),
                "variant": name,
                "type": str(dtype).removeprefix("torch."),
                "images/s": case[2] / seconds,
                "peak MiB": memory,
                "GFLOP": rate * seconds / 1e9,
                "share of product peak": rate / peaks[dtype],
                "launches": launched.launched,
                "casts": launched.casts,
                "idle share": idle_share(launched, seconds),
            }
            if "published" in measured:
                first_seconds, first_memory, *_ = measured["published"]
                row["speed ratio"] = first_seconds / seconds
                row["peak ratio"] = first_memory / max(1, memory)
            rows.append(row)
    return rows


def _measure(
    variants: Variants, options: BenchmarkOptions
) -> dict[str, tuple[float, float, Launches, int]]:
    """Seconds, peak MiB, launches and counted FLOPs of each variant, in turns."""
    memory = {
        name: peak_memory(build, *arguments, options=options).total
        for name, (build, arguments) in variants.items()
    }
    steps = {name: build(*arguments) for name, (build, arguments) in variants.items()}
    flops = {
        name: _flops(step) for name, step in steps.items() if name in ("published", "ours, off")
    }
    seconds = median_seconds(steps, options.repeats, options.device)
    return {
        name: (seconds[name], memory[name], launches(step, options.device), flops.get(name, 0))
        for name, step in steps.items()
    }


def _while_there_is_time(cases: list[Case], options: BenchmarkOptions) -> Iterator[Case]:
    """Give the cases one by one, until the minutes of a part are over."""
    end = time.monotonic() + 60 * options.minutes
    for number, case in enumerate(cases):
        if time.monotonic() > end:
            logger.warning("--minutes %g are over; left out: %s", options.minutes, cases[number:])
            return
        yield case


def idle_share(launched: Launches, seconds: float) -> float | None:
    """Part of a step in which the GPU does nothing; None on a CPU."""
    return 1 - launched.busy / seconds if launched.busy else None


def _flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _detector(options: BenchmarkOptions) -> list[Row]:
    """Training step and inference of F-ViT; ratios compare with the careless variant."""
    modes = dict.fromkeys(("off", *options.compile_modes))
    variants = CARELESS | {f"ours, {mode}": (False, mode) for mode in modes}
    detectors = {name: build_detector(options, *variant) for name, variant in variants.items()}
    rows: list[Row] = []
    cases = [*product(options.sizes, options.detector_batches, HEAD_REGIONS)]
    for size, count, task in _while_there_is_time(cases, options):
        memory = {
            name: peak_memory(
                build_detector_step, options, variant, size, task, count, options=options
            )
            for name, variant in variants.items()
        }
        steps = {
            name: detector_step(*parts, size, task, count) for name, parts in detectors.items()
        }
        seconds = median_seconds(steps, options.repeats, options.device)
        first = next(iter(detectors))
        for name, (_, backbone) in detectors.items():
            launched = launches(steps[name], options.device)
            with watch_tower(backbone) as watch:
                steps[name]()
            rows.append(
                {
                    "size": size,
                    "images": count,
                    "task": task,
                    "regions": options.regions[task == "inference"],
                    "variant": name,
                    "images/s": count / seconds[name],
                    "speed ratio": seconds[first] / seconds[name],
                    "tower passes": watch["passes"],
                    "launches": launched.launched,
                    "idle share": idle_share(launched, seconds[name]),
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
    "data": data_rows,
    "padding": padding_rows,
    "segmentation": measure_aggregation,
    "windows": measure_joining,
    "export": export_rows,
}


def run_benchmark(parts: Sequence[str], options: BenchmarkOptions) -> Report:
    """Measure some of ``PARTS``; returns ``machine``, ``options``, and the rows of each part."""
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
    """Lay a report out for the terminal: a heading and a Markdown table for every part."""
    about: Any = report["machine"]
    lines = [
        f"{about['device']}, {about['threads']} thread(s), torch {about['torch']}; medians of "
        f"{about['clock']} time"
    ]
    for part in PARTS:
        if part in report:
            rows: Any = report[part]
            table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g")
            lines += ["", f"## {part}", "", table]
    return "\n".join(lines)
