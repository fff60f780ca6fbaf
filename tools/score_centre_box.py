"""Score the trivial answer of referring segmentation: one box at the centre of every picture."""

import sys

from clipself_d2_cli.flags import tool_parser

EXAMPLE = "python tools/score_centre_box.py --train emoji_refer_train --test emoji_refer_val"


def main() -> int:
    """Parse the flags and score."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("--train", required=True, help="data set whose objects are measured")
    parser.add_argument("--test", required=True, help="data set that is scored")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.analysis.centre_box import STEPS, score_centre_box
    from clipself_d2.engine.cli import run_tool

    def action() -> None:
        (width, height), scores = score_centre_box(args.train, args.test)
        print(f"a box of {width}/{STEPS} of the width and {height}/{STEPS} of the height:")
        print(", ".join(f"{name} {value:.2f}" for name, value in scores.items()))

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
