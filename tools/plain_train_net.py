"""Detectron2's own training loop around this project's backbones: the line marked + is new.

Evaluators are this project's, for its data sets, and so are the readers of files, since those of
Detectron2 run code that a file holds. It trains and scores any yaml config, among them those that
need the keys of PointRend and DeepLab.
"""

import sys
from argparse import Namespace
from collections import OrderedDict
from functools import partial

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from detectron2.utils import comm

import clipself_d2  # noqa: F401  # +
from clipself_d2.data.proposal_files import check_proposal_files
from clipself_d2.engine.cli import run_tool
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.parts.checkpointer import SafeCheckpointer
from clipself_d2.parts.config_files import merge_config_file

EXAMPLE = "python tools/plain_train_net.py --config-file configs/plug_in/retinanet.yaml"


class Trainer(DefaultTrainer):
    """Detectron2's trainer with an evaluator for each data set."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Choose the evaluator by the data set's ``evaluator_type``."""
        return build_evaluator(dataset_name, cfg.OUTPUT_DIR)


def set_up(args: Namespace) -> CfgNode:
    """Read the config and freeze it."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    add_deeplab_config(cfg)
    merge_config_file(cfg, args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    for split in ("TRAIN", "TEST"):
        check_proposal_files(cfg, split)
    default_setup(cfg, args)
    return cfg


def main(args: Namespace) -> OrderedDict | None:
    """Train or evaluate; returns the results of the evaluation."""
    cfg = set_up(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        SafeCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.checkpointer = SafeCheckpointer(trainer.model, cfg.OUTPUT_DIR, trainer=trainer)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser(epilog=f"Example:\n\n    {EXAMPLE}\n").parse_args()
    machines = (args.num_machines, args.machine_rank, args.dist_url)
    sys.exit(run_tool(partial(launch, main, args.num_gpus, *machines, args=(args,))))
