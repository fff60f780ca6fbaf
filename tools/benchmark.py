"""Measure speed and memory against plain versions of the same work, in one run."""

import sys
from typing import Any

from clipself_d2_cli.flags import device, positive, real, tool_parser, user_path

EXAMPLE = "python tools/benchmark.py distill --size 384 --batch 2 --output output/benchmark.json"
PARTS = (
    "distill",
    "detector",
    "evaluation",
    "text",
    "classes",
    "data",
    "padding",
    "segmentation",
    "windows",
    "export",
)
COMPILE_MODES = ("off", "blocks", "step")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")


def main() -> int:
    """Parse the flags, measure, and print the tables."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("part", choices=[*PARTS, "all"], help="what to measure")
    add("--device", type=device, choices=("cuda", "cpu"), help="default: a GPU")
    add("--model", help="CLIP with random weights; default: those of the papers")
    add(
        "--size",
        type=positive,
        nargs="+",
        help="sides of the image in px; default: 1024 512 on a GPU, 384 256 on a CPU",
    )
    add("--batch", type=positive, nargs="+", help="distill: images of a step")
    add("--compile", choices=COMPILE_MODES, nargs="+", help="distill, detector: our variants")
    add("--minutes", type=real(0, 600), help="distill, detector: begin no case after")
    add("--precision", choices=PRECISIONS, default="auto", help="of our variants")
    add("--repeats", type=positive, default=5, help="runs; their median is taken")
    add("--classes", type=positive, help="text: classes; default: 5 on a GPU, 2 on a CPU")
    add("--scale", type=real(1e-6, 1), default=0.1, help="share of LVIS val")
    add("--reference", action="store_true", help="evaluation: run the reference scorer too (slow)")
    add("--output", type=user_path, help="json file to write")
    args = parser.parse_args()

    import torch

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.benchmark.measure import BenchmarkOptions
    from clipself_d2.apps.benchmark.run import DEFAULTS, run_benchmark, tables
    from clipself_d2.engine.cli import run_tool, start_logging
    from clipself_d2.parts.json_file import write_json

    def action() -> None:
        start_logging()
        place = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        given = {
            "sizes": args.size and tuple(args.size),
            "batches": args.batch and tuple(args.batch),
            "compile_modes": args.compile and tuple(args.compile),
            "text_classes": args.classes,
            **{name: vars(args)[name] for name in ("model", "precision", "repeats")},
            **{name: vars(args)[name] for name in ("scale", "reference", "minutes")},
        }
        if args.model or args.size:
            sizes: Any = args.size or DEFAULTS[place]["sizes"]
            name = args.model or BenchmarkOptions.model
            given["cases"] = tuple((name, size) for size in sizes)
        chosen = {name: value for name, value in given.items() if value is not None}
        options = BenchmarkOptions(device=place, **{**DEFAULTS[place], **chosen})
        report = run_benchmark(list(PARTS) if args.part == "all" else [args.part], options)
        print(tables(report))
        if args.output is not None:
            write_json(args.output, report, indent=1)

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
