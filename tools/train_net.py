"""Train or evaluate a detector, with Detectron2's flags."""

import sys

from clipself_d2_cli.flags import train_parser

EXAMPLE = (
    "python tools/train_net.py --config-file configs/emoji/fvit_untouched.yaml "
    "OUTPUT_DIR output/fvit"
)


def main() -> int:
    """Parse the flags, then train or evaluate."""
    args = train_parser(EXAMPLE, __doc__).parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.engine.cli import run_training_tool
    from clipself_d2.engine.trainer import Trainer

    return run_training_tool(Trainer, args)


if __name__ == "__main__":
    sys.exit(main())
