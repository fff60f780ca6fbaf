"""Run RegionCLIP's ablations on emoji scenes and write a page with their figures."""

import logging
import shlex
import sys
from pathlib import Path

from clipself_d2_cli.flags import add_data_root, count, positive, tool_parser, user_path

EXAMPLE = (
    "python tools/run_ablations.py --proposals output/quickstart/proposals_train.json "
    "--rpn output/quickstart/rpn/model_final.pth --output output/ablations"
)


def main() -> int:
    """Parse the flags, run, write."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("--proposals", type=user_path, required=True, help="of emoji_train_images")
    parser.add_argument("--rpn", type=user_path, help="weights of rpn.yaml, for zero-shot boxes")
    parser.add_argument("--output", type=user_path, default=Path("output/ablations"))
    parser.add_argument("--page", type=user_path, default=Path("docs/regionclip_ablations.md"))
    add_data_root(parser, "--data-root", "folder of the data set")
    parser.add_argument("--iterations", type=positive, default=300, help="of each pre-training")
    parser.add_argument("--detector-iterations", type=positive, default=300, help="of detectors")
    parser.add_argument("--tables", nargs="*", default=[], help="words of titles; all without")
    parser.add_argument("--seed", type=count, default=0)
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY VALUE")
    args = vars(parser.parse_args())

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.emoji.ablations import AblationOptions, run_ablations
    from clipself_d2.engine.cli import run_tool

    debug = args.pop("debug")
    command = f"python {shlex.join(sys.argv)}"
    for name in ("proposals", "output", "data_root", "rpn"):
        args[name] = args[name] and args[name].resolve()
    for name in ("tables", "overrides"):
        args[name] = tuple(args[name])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return run_tool(lambda: run_ablations(AblationOptions(**args), command), debug=debug)


if __name__ == "__main__":
    sys.exit(main())
