"""Measure speed and memory against plain versions of the same work, in one run."""

import sys

from clipself_d2_cli.flags import device, positive, real, tool_parser, user_path

EXAMPLE = "python tools/benchmark.py distill --size 384 256 --output output/benchmark.json"
PARTS = ("distill", "detector", "evaluation", "text", "classes")
PRECISIONS = ("fp32", "bf16", "fp16", "auto")


def main() -> int:
    """Parse the flags, measure, and print the tables.

    Returns:
        Exit code.
    """
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("part", choices=[*PARTS, "all"], help="what to measure")
    parser.add_argument("--device", type=device, choices=("cuda", "cpu"), help="default: a GPU")
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="CLIP, with random weights")
    parser.add_argument(
        "--size",
        type=positive,
        nargs="+",
        help="sides of the image in px; default: 1024 512 on a GPU, 384 256 on a CPU",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of our variants")
    parser.add_argument("--repeats", type=positive, default=5, help="runs; their median is taken")
    parser.add_argument(
        "--classes",
        type=positive,
        help="text: classes; default: 1203 on a GPU, 2 on a CPU",
    )
    parser.add_argument("--scale", type=real(1e-6, 1), default=0.1, help="share of LVIS val")
    parser.add_argument(
        "--reference", action="store_true", help="evaluation: run the reference scorer too (slow)"
    )
    parser.add_argument("--output", type=user_path, help="json file to write")
    args = parser.parse_args()

    import torch

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.benchmark.measure import BenchmarkOptions
    from clipself_d2.apps.benchmark.run import DEFAULTS, run_benchmark, tables, write_report
    from clipself_d2.engine.cli import run_tool, start_logging

    def action() -> None:
        start_logging()
        place = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        given = {
            "sizes": args.size and tuple(args.size),
            "text_classes": args.classes,
            **{name: vars(args)[name] for name in ("model", "precision", "repeats")},
            **{name: vars(args)[name] for name in ("scale", "reference")},
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        options = BenchmarkOptions(device=place, **{**DEFAULTS[place], **chosen})
        report = run_benchmark(list(PARTS) if args.part == "all" else [args.part], options)
        print(tables(report))
        if args.output is not None:
            write_report(report, args.output)

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
