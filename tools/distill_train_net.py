"""Distil a CLIP image tower, or score its region features, with Detectron2's flags."""

import sys

from clipself_d2_cli.flags import train_parser

EXAMPLE = (
    "python tools/distill_train_net.py --config-file configs/emoji/clipself_patches.yaml "
    "OUTPUT_DIR output/clipself"
)


def main() -> int:
    """Parse the flags, then train or evaluate."""
    args = train_parser(EXAMPLE, __doc__).parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.engine.cli import run_training_tool
    from clipself_d2.engine.distill_trainer import DistillTrainer

    return run_training_tool(DistillTrainer, args)


if __name__ == "__main__":
    sys.exit(main())
