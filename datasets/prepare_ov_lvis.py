"""Write the annotation files of open-vocabulary LVIS v1 (866 base, 337 novel classes).

Reads lvis/lvis_v1_{train,val}.json; a second call does nothing.
"""

import argparse
import os
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from clipself_d2.apps.prepare.ov import prepare_ov_lvis
from clipself_d2.engine.cli import run_tool


def main() -> int:
    """Parse the flags and write the files.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python datasets/prepare_ov_lvis.py --root datasets",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.getenv("DETECTRON2_DATASETS", "datasets")),
        help="folder that holds lvis/; default DETECTRON2_DATASETS or datasets",
    )
    parser.add_argument("--force", action="store_true", help="write files that are there again")
    args = parser.parse_args()
    setup_logger(name="clipself_d2")
    return run_tool(lambda: prepare_ov_lvis(args.root.expanduser(), force=args.force))


if __name__ == "__main__":
    sys.exit(main())
