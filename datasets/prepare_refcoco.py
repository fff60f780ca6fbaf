"""Check downloaded RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO files, and convert them to JSON.

Prints the number of references of every split beside the published one.
"""

import sys

from clipself_d2_cli.flags import add_data_root, tool_parser


def main() -> int:
    """Parse the flags and check the files."""
    parser = tool_parser(__doc__, "python datasets/prepare_refcoco.py --root datasets --json")
    add_data_root(parser, "--root", "folder of refcoco/, refcoco+/, ... and coco/train2014/")
    parser.add_argument(
        "--json", action="store_true", help="write refs(...).json beside every refs(...).p"
    )
    args = parser.parse_args()

    from clipself_d2.apps.prepare.refcoco import prepare_refcoco
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()

    def action() -> None:
        prepare_refcoco(args.root, write_json=args.json)

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
