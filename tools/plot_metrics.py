"""Draw the losses and scores of training runs, side by side."""

import sys

from clipself_d2_cli.flags import tool_parser, user_path

EXAMPLE = "python tools/plot_metrics.py output/run_a output/run_b --output output/metrics.png"


def main() -> int:
    """Parse the flags and draw."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("folders", type=user_path, nargs="+", metavar="DIR", help="OUTPUT_DIR of a run")
    add("--only", nargs="+", default=[], help="beginnings of names, such as loss bbox/AP50")
    add("--output", type=user_path, default=user_path("metrics.png"), help="default: metrics.png")
    args = parser.parse_args()

    from clipself_d2.apps.analysis.plot_metrics import plot_metrics
    from clipself_d2.engine.cli import run_tool

    def action() -> None:
        names = plot_metrics(args.folders, args.output, args.only)
        print(f"{args.output}: {', '.join(names)}")

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
