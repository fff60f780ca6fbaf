"""Train or evaluate a detector, with Detectron2's flags."""

import argparse
import sys


import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.engine.cli import run_training_tool, set_up
from clipself_d2.engine.trainer import Trainer

EXAMPLE = (
    "python tools/train_net.py --config-file configs/emoji/fvit_untouched.yaml "
    "OUTPUT_DIR output/fvit"
)


def main(args: argparse.Namespace) -> object:
    """Train on DATASETS.TRAIN, or evaluate MODEL.WEIGHTS on DATASETS.TEST.

    Args:
        args: Parsed flags.

    Returns:
        Evaluation results.
    """
    cfg = set_up(args)
    if args.eval_only:
        return Trainer.evaluate_weights(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    sys.exit(run_training_tool(main, EXAMPLE))
