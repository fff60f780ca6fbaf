"""Train or evaluate a detector, with Detectron2's flags."""

import sys

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.engine.cli import run_training_tool
from clipself_d2.engine.trainer import Trainer

EXAMPLE = (
    "python tools/train_net.py --config-file configs/emoji/fvit_untouched.yaml "
    "OUTPUT_DIR output/fvit"
)

if __name__ == "__main__":
    sys.exit(run_training_tool(Trainer, EXAMPLE))
