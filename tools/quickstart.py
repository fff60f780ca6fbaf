"""Run the whole path on the embedded data set; called by tools/quickstart.sh."""

import sys
from pathlib import Path

from clipself_d2_cli.flags import add_data_root, count, device, positive, tool_parser, user_path

EXAMPLE = "python tools/quickstart.py --regions grid --seed 1"
# Scenes and steps, as ``QuickstartOptions``.
DEFAULTS = {
    "train": 2000,
    "val": 300,
    "rpn-iterations": 250,
    "distill-iterations": 750,
    "detector-iterations": 300,
}


def main() -> int:
    """Parse the flags and run the stages."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("--output", type=user_path, default=Path("output/quickstart"))
    add_data_root(parser, "--data-root", "folder of the data set")
    for name, value in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=positive, default=value)
    parser.add_argument("--regions", choices=["proposals", "grid", "both"], default="proposals")
    parser.add_argument("--seed", type=count, default=0)
    parser.add_argument("--device", type=device, help="default: a GPU where there is one")
    parser.add_argument("--verbose", action="store_true", help="show every stage's log here too")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    args = vars(parser.parse_args())
    debug = args.pop("debug")
    place = args.pop("device")
    args["overrides"] = (*args["overrides"], *(("MODEL.DEVICE", place) if place else ()))

    from clipself_d2.apps.emoji.quickstart import QuickstartOptions, run_quickstart
    from clipself_d2.engine.cli import run_tool

    for name in ("output", "data_root"):
        args[name] = args[name].resolve()
    return run_tool(lambda: run_quickstart(QuickstartOptions(**args)), debug=debug)


if __name__ == "__main__":
    sys.exit(main())
