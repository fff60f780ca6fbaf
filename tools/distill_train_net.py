"""Distil a CLIP image tower, or score its region features, with Detectron2's flags."""

import sys

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.engine.cli import run_training_tool
from clipself_d2.engine.distill_trainer import DistillTrainer

EXAMPLE = (
    "python tools/distill_train_net.py --config-file configs/emoji/clipself_patches.yaml "
    "OUTPUT_DIR output/clipself"
)

if __name__ == "__main__":
    sys.exit(run_training_tool(DistillTrainer, EXAMPLE))
