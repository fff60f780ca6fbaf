"""Write docs/config.md, the page of yaml keys, from the comments of clipself_d2/config.py."""

import sys
from pathlib import Path

from clipself_d2_cli.flags import tool_parser


def main() -> int:
    """Read the flags and write the page."""
    parser = tool_parser(__doc__, "python tools/list_keys.py --output docs/config.md")
    parser.add_argument("--output", required=True, help="file to write")
    args = parser.parse_args()

    from clipself_d2.apps.files.config_page import render
    from clipself_d2.engine.cli import run_tool

    path = Path(args.output).expanduser()
    return run_tool(lambda: path.write_text(render(), encoding="utf-8"), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
