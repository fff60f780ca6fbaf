"""Train a small vision model on emoji scenes without labels, for MODEL.VFM.WEIGHTS."""

import logging
import os
import sys

from clipself_d2_cli.flags import add_data_root, count, positive, tool_parser, user_path

EXAMPLE = "python tools/train_emoji_vfm.py --output output/vfm.pth"


def main() -> int:
    """Parse the flags and train."""
    parser = tool_parser(__doc__, EXAMPLE)
    parser.add_argument("--output", type=user_path, required=True, help="file to write")
    add_data_root(parser, "--data-root", "folder of the data set")
    parser.add_argument("--steps", type=positive, default=400)
    parser.add_argument("--batch-size", type=positive, default=64, help="scenes a step")
    parser.add_argument("--seed", type=count, default=0)
    args = vars(parser.parse_args())
    # Read when the data sets are registered, by the import below.
    os.environ["DETECTRON2_DATASETS"] = str(args.pop("data_root").resolve())

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.emoji.train_vfm import train_vision_model
    from clipself_d2.engine.cli import run_tool

    debug = args.pop("debug")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    return run_tool(lambda: train_vision_model(**args), debug=debug)


if __name__ == "__main__":
    sys.exit(main())
