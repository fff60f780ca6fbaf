"""Write the table of image towers: which models of open_clip have a dense map, and how."""

import sys

from clipself_d2_cli.flags import tool_parser, user_path

EXAMPLE = "python tools/list_towers.py --output docs/towers.md"


def main() -> int:
    """Parse the flags and write the page."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("--output", type=user_path, help="Markdown file; without it, the terminal")
    parser.add_argument("names", nargs="*", help="model names; without any, all of open_clip's")
    args = parser.parse_args()

    from clipself_d2.apps.files.list_towers import write_towers
    from clipself_d2.engine.cli import run_tool

    return run_tool(lambda: write_towers(args.names, args.output), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
