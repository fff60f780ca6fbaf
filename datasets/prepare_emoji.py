"""Render the embedded data set: emoji scenes in COCO, LVIS, panoptic, RefCOCO and caption formats.

A second call with the same options checks every file and does nothing when all are intact.
"""

import sys

from clipself_d2_cli.flags import add_data_root, count, positive, tool_parser


def main() -> int:
    """Parse the flags and write the files."""
    parser = tool_parser(
        __doc__, "python datasets/prepare_emoji.py --root datasets --train 2000 --val 300"
    )
    add_data_root(parser, "--root", "folder of data sets")
    add = parser.add_argument
    add("--train", type=positive, default=2000, help="training images")
    add("--val", type=positive, default=300, help="validation images")
    add("--seed", type=count, default=0, help="seed of all images")
    add("--panoptic-train", action="store_true", help="write panoptic files of train/ too")
    args = parser.parse_args()

    from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()

    def action() -> None:
        options = EmojiOptions(args.train, args.val, args.seed, args.panoptic_train)
        prepare_emoji(args.root, options)

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
