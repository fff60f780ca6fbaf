"""The benchmark: its parts, their tables, and a report."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tabulate import tabulate

from clipself_d2.apps.benchmark.detect import benchmark_detector
from clipself_d2.apps.benchmark.distill import benchmark_distill
from clipself_d2.apps.benchmark.eval import benchmark_evaluation
from clipself_d2.apps.benchmark.measure import BenchmarkOptions, Row, machine
from clipself_d2.apps.benchmark.text import benchmark_classes, benchmark_text
from clipself_d2.clip.precision import check_precision
from clipself_d2.clip.registry import check_name

logger = logging.getLogger(__name__)

PARTS: dict[str, Callable[[BenchmarkOptions], list[Row]]] = {
    "distill": benchmark_distill,
    "detector": benchmark_detector,
    "evaluation": benchmark_evaluation,
    "text": benchmark_text,
    "classes": benchmark_classes,
}
# The published size and half of it; what a laptop can do.
DEFAULT_SIZES = {"cuda": (1024, 512), "cpu": (384, 256)}
# Published; few, so that the ViT is still most of the work at small sizes.
DEFAULT_REGIONS = {"cuda": (512, 1000), "cpu": (32, 64)}
# LVIS; a class has 63 prompts.
DEFAULT_TEXT_CLASSES = {"cuda": 1203, "cpu": 2}
_SIGNIFICANT = ".4g"

Report = dict[str, object]


def make_options(
    *,
    device: str | None,
    model: str,
    sizes: Sequence[int] | None,
    precision: str,
    repeats: int,
    text_classes: int | None,
    scale: float,
    reference: bool,
) -> BenchmarkOptions:
    """Check what was asked for, and fill in what was not.

    Args:
        device: cpu or cuda; None takes a GPU where there is one.
        model: Name of a CLIP.
        sizes: Sides of the images, px; None takes those that fit the device.
        precision: Number type of our variants.
        repeats: Measured runs of every variant.
        text_classes: Classes whose prompts are embedded; None takes what fits the device.
        scale: Share of LVIS val in the evaluation.
        reference: Whether the reference scorer runs too.

    Returns:
        The options.

    Raises:
        ValueError: If one of them cannot be had.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no GPU here; use --device cpu")
    check_precision(precision)
    check_name(model)
    if repeats < 1:
        raise ValueError(f"--repeats is {repeats}; it must be at least 1")
    if sizes is not None and min(sizes) < 1:
        raise ValueError(f"--size is {min(sizes)}; it is a side in px")
    return BenchmarkOptions(
        device=device,
        model=model,
        sizes=tuple(sizes) if sizes else DEFAULT_SIZES[device],
        precision=precision,
        repeats=repeats,
        text_classes=DEFAULT_TEXT_CLASSES[device] if text_classes is None else text_classes,
        regions=DEFAULT_REGIONS[device],
        scale=scale,
        reference=reference,
    )


def run_benchmark(parts: Sequence[str], options: BenchmarkOptions) -> Report:
    """Measure some parts.

    Args:
        parts: Names in ``PARTS``.
        options: What to measure.

    Returns:
        ``machine``, ``options``, and the rows of each part.
    """
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
            table = tabulate(
                report[part],  # type: ignore[call-overload]
                headers="keys",
                tablefmt="github",
                floatfmt=_SIGNIFICANT,
            )
            lines += ["", f"## {part}", "", table]
    return "\n".join(lines)


def write_report(report: Report, output: Path) -> None:
    """Write a report as JSON.

    Args:
        report: Of ``run_benchmark``.
        output: File to write.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="ascii")
    logger.info("figures in %s", output)
