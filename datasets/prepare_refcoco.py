"""Check downloaded RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO files, and convert them to JSON.

Prints the number of references of every split beside the published one.
"""

import argparse
import os
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from clipself_d2.apps.prepare.refcoco import prepare_refcoco
from clipself_d2.engine.cli import run_tool


def main() -> int:
    """Parse the flags and check the files.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python datasets/prepare_refcoco.py --root datasets --json",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.getenv("DETECTRON2_DATASETS", "datasets")),
        help="folder of refcoco/, refcoco+/, refcocog/, grefcoco/ and coco/train2014/; default "
        "DETECTRON2_DATASETS or datasets",
    )
    parser.add_argument(
        "--json", action="store_true", help="write refs(...).json beside every refs(...).p"
    )
    args = parser.parse_args()
    setup_logger(name="clipself_d2")

    def action() -> None:
        prepare_refcoco(args.root.expanduser(), write_json=args.json)

    return run_tool(action)


if __name__ == "__main__":
    sys.exit(main())
