"""Train both segmenters on emoji scenes, untouched and distilled, and print the table of scores."""

import logging
import os
import sys
from pathlib import Path

from clipself_d2_cli.flags import add_data_root, count, positive, tool_parser, user_path

# As in clipself_d2.apps.predict.classify_masks; a test compares them.
POOLINGS = ("hard", "soft", "tokens")
EXAMPLE = (
    "python tools/run_segmentation.py --students output/quickstart/clipself/model_final.pth "
    "--seeds 0 1 2 --output output/segmentation"
)


def main() -> int:
    """Parse the flags, run what has no results, print the table."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--students", type=user_path, nargs="+", required=True, help="distilled ViTs, one a seed")
    add("--seeds", type=count, nargs="+", default=[0, 1, 2])
    add("--output", type=user_path, default=Path("output/segmentation"))
    add_data_root(parser, "--data-root", "folder of the data set")
    add("--panoptic-iterations", type=count, default=200, help="0: none")
    add("--cat-seg-iterations", type=count, default=200, help="0: none")
    add(
        "--poolings",
        nargs="*",
        choices=POOLINGS,
        default=POOLINGS,
        help="how true masks are named; nothing behind it: they are not",
    )
    add(
        "--words",
        type=positive,
        nargs="*",
        default=[],
        help="numbers of words for which the first seed's distilled CAT-Seg is timed and scored",
    )
    add("--overrides", nargs="*", default=[], metavar="KEY VALUE")
    args = vars(parser.parse_args())
    # Read when the data sets are registered, by the import below and by every stage.
    os.environ["DETECTRON2_DATASETS"] = str(args["data_root"].resolve())

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.emoji.segmentation import SegmentationOptions, run_segmentation
    from clipself_d2.engine.cli import run_tool

    debug = args.pop("debug")
    args["students"] = tuple(path.resolve() for path in args["students"])
    args["output"], args["data_root"] = args["output"].resolve(), args["data_root"].resolve()
    for name in ("seeds", "poolings", "words", "overrides"):
        args[name] = tuple(args[name])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return run_tool(lambda: print(run_segmentation(SegmentationOptions(**args))), debug=debug)


if __name__ == "__main__":
    sys.exit(main())
