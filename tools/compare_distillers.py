"""Distil the embedded CLIP by every method under one budget and write a table of what they gain."""

import logging
import os
import shlex
import sys
from pathlib import Path

from clipself_d2_cli.flags import add_data_root, count, positive, tool_parser, user_path

METHODS = (
    "untouched",
    "CLIPSelf",
    "SC-CLIPSelf",
    "DeCLIP",
    "SynCLIP",
    "DenseRC",
    "DenseVLM",
)
EXAMPLE = "python tools/compare_distillers.py --seeds 1 --iterations 200"


def main() -> int:
    """Parse the flags, run, write."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("--output", type=user_path, default=Path("output/distillers"))
    parser.add_argument("--page", type=user_path, default=Path("output/distillers_emoji.md"))
    add_data_root(parser, "--data-root", "folder of the data set")
    parser.add_argument("--iterations", type=positive, default=750, help="of each distillation")
    parser.add_argument("--detector-iterations", type=count, default=0, help="of F-ViT; 0: none")
    parser.add_argument("--seeds", type=positive, default=3, help="number of seeds")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--vfm", type=user_path, help="weights of the vision model: more lines")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY VALUE")
    args = vars(parser.parse_args())
    # Read when the data sets are registered, by the import below and by every stage.
    os.environ["DETECTRON2_DATASETS"] = str(args["data_root"].resolve())

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.emoji.compare_distillers import CompareOptions, run_comparison
    from clipself_d2.engine.cli import run_tool

    debug = args.pop("debug")
    command = f"python {shlex.join(sys.argv)}"
    for name in ("output", "data_root"):
        args[name] = args[name].resolve()
    if args["vfm"]:
        args["vfm"] = args["vfm"].resolve()
    for name in ("methods", "overrides"):
        args[name] = tuple(args[name])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return run_tool(lambda: run_comparison(CompareOptions(**args), command), debug=debug)


if __name__ == "__main__":
    sys.exit(main())
