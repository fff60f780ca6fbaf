"""Write COCO files of the transfer sets: Pascal VOC 2007 and 2012, Objects365 v1 and v2.

Converts those whose official annotations lie below the root; a second call does nothing.
"""

import sys

from clipself_d2_cli.flags import add_data_root, tool_parser


def main() -> int:
    """Parse the flags and write the files."""
    parser = tool_parser(__doc__, "python datasets/prepare_transfer.py --root datasets")
    add_data_root(parser, "--root", "folder that holds VOC2007/, objects365v1/ ...")
    parser.add_argument("--force", action="store_true", help="write files that are there again")
    args = parser.parse_args()

    from clipself_d2.apps.prepare.transfer import prepare_transfer
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()
    return run_tool(lambda: prepare_transfer(args.root, force=args.force), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
