"""Render the embedded data set: emoji scenes in COCO, LVIS, panoptic, RefCOCO and caption formats.

A second call with the same options checks every file and does nothing when all are intact.
"""

import argparse
import os
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji
from clipself_d2.engine.cli import run_tool


def main() -> int:
    """Parse the flags and write the files.

    Returns:
        Exit code.
    """
    defaults = EmojiOptions()
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python datasets/prepare_emoji.py --root datasets --train 2000 --val 300",
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.getenv("DETECTRON2_DATASETS", "datasets")),
        help="folder of data sets; default DETECTRON2_DATASETS or datasets",
    )
    parser.add_argument("--train", type=int, default=defaults.train, help="training images")
    parser.add_argument("--val", type=int, default=defaults.val, help="validation images")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of all images")
    parser.add_argument(
        "--panoptic-train", action="store_true", help="write panoptic files of train/ too"
    )
    args = parser.parse_args()
    setup_logger(name="clipself_d2")

    def action() -> None:
        options = EmojiOptions(args.train, args.val, args.seed, args.panoptic_train)
        prepare_emoji(args.root, options)

    return run_tool(action)


if __name__ == "__main__":
    sys.exit(main())
