"""Write COCO files of the transfer sets: Pascal VOC 2007 and 2012, Objects365 v1 and v2.

Converts those whose official annotations lie below the root; a second call does nothing.
"""

import argparse
import os
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from clipself_d2.apps.prepare.transfer import prepare_transfer
from clipself_d2.engine.cli import run_tool


def main() -> int:
    """Parse the flags and write the files.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python datasets/prepare_transfer.py --root datasets",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.getenv("DETECTRON2_DATASETS", "datasets")),
        help="folder that holds VOC2007/, objects365v1/ ...; default DETECTRON2_DATASETS or "
        "datasets",
    )
    parser.add_argument("--force", action="store_true", help="write files that are there again")
    args = parser.parse_args()
    setup_logger(name="clipself_d2")
    return run_tool(lambda: prepare_transfer(args.root.expanduser(), force=args.force))


if __name__ == "__main__":
    sys.exit(main())
