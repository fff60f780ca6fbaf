"""Write the annotation files of open-vocabulary COCO (48 base, 17 novel classes).

Reads coco/annotations/instances_{train,val}2017.json; a second call does nothing.
"""

import sys

from clipself_d2_cli.flags import add_data_root, tool_parser


def main() -> int:
    """Parse the flags and write the files."""
    parser = tool_parser(__doc__, "python datasets/prepare_ov_coco.py --root datasets")
    add_data_root(parser, "--root", "folder that holds coco/")
    parser.add_argument("--force", action="store_true", help="write files that are there again")
    args = parser.parse_args()

    from clipself_d2.apps.prepare.ov import prepare_ov_coco
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()
    return run_tool(lambda: prepare_ov_coco(args.root, force=args.force), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
