"""Distil a CLIP image tower, or score its region features, with Detectron2's flags."""

import argparse
import sys


import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.engine.cli import run_training_tool, set_up
from clipself_d2.engine.distill_trainer import DistillTrainer

EXAMPLE = (
    "python tools/distill_train_net.py --config-file configs/emoji/clipself_patches.yaml "
    "OUTPUT_DIR output/clipself"
)


def main(args: argparse.Namespace) -> object:
    """Distil on DATASETS.TRAIN, or score the student on DATASETS.TEST.

    Args:
        args: Parsed flags.

    Returns:
        Evaluation results.
    """
    cfg = set_up(args)
    if args.eval_only:
        return DistillTrainer.evaluate_weights(cfg)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    sys.exit(run_training_tool(main, EXAMPLE))
