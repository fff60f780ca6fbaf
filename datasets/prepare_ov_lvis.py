"""Write the annotation files of open-vocabulary LVIS v1 (866 base, 337 novel classes).

Reads lvis/lvis_v1_{train,val}.json; a second call does nothing.
"""

import sys

from clipself_d2_cli.flags import add_data_root, tool_parser


def main() -> int:
    """Parse the flags and write the files."""
    parser = tool_parser(__doc__, "python datasets/prepare_ov_lvis.py --root datasets")
    add_data_root(parser, "--root", "folder that holds lvis/")
    parser.add_argument("--force", action="store_true", help="write files that are there again")
    args = parser.parse_args()

    from clipself_d2.apps.prepare.ov import prepare_ov_lvis
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()
    return run_tool(lambda: prepare_ov_lvis(args.root, force=args.force), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
