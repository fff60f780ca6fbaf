"""Detectron2's trainer, with our optimisers, several CPU processes, and our evaluation."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from clipself_d2.backbones.compatibility import check_model
from clipself_d2.data.build import (
    build_detection_test_loader_from_cfg,
    build_detection_train_loader_from_cfg,
)
from clipself_d2.data.datasets.custom import folder_name
from clipself_d2.data.referring_loader import (
    build_referring_test_loader_from_cfg,
    build_referring_train_loader_from_cfg,
    has_references,
)
from clipself_d2.detection.tta import with_test_time_augmentation
from clipself_d2.engine.accumulation import unwrap
from clipself_d2.engine.evaluate import (
    evaluator_of,
    protocol_of,
    vocabulary_of,
    warn_of_limit,
    write_results,
)
from clipself_d2.engine.exact_steps import ExactSteps
from clipself_d2.engine.late_metrics import late_metrics
from clipself_d2.engine.loop import adapt_loop, amp_runs, cpu_processes
from clipself_d2.engine.pictures import ValidationPictures
from clipself_d2.engine.solver import build_optimizer, keep_idle_rows, optimizer_params_from_cfg
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.runs.checkpointer import StrictCheckpointer, changed, self_contained
from clipself_d2.runs.checkpoints import check_finite
from clipself_d2.runs.interrupts import StopOnSignal

logger = logging.getLogger(__name__)
# Iterations between two writes of DefaultTrainer.
_WRITE_PERIOD = 20


class Trainer(DefaultTrainer):
    """Trainer of detectors; a subclass overrides what it would of ``DefaultTrainer``.

    Differs from ``DefaultTrainer``: what an iteration draws is a function of the seed and the
    iteration, so that a resumed run equals an uninterrupted one; the optimiser follows
    SOLVER.OPTIMIZER, several processes may train on CPUs, checkpoints of another model are refused,
    and test data sets are scored with their own vocabularies.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if cfg.SOLVER.AMP.ENABLED and not amp_runs(cfg.MODEL.DEVICE, enabled=True):
            cfg = changed(cfg, "SOLVER.AMP.ENABLED", False)
        with cpu_processes():
            super().__init__(cfg)
        adapt_loop(self._trainer, steps=self.cfg.SOLVER.ACCUMULATION_STEPS)

    def build_hooks(self) -> list:
        """Build Detectron2's hooks around our checkpointer."""
        # Detectron2 asks for the hooks right after it has made a checkpointer of its own.
        self.checkpointer = self.build_checkpointer(unwrap(self.model))
        late = late_metrics(self._trainer, self.cfg.MODEL.DEVICE, _WRITE_PERIOD)
        hooks: list = [ExactSteps(max(self.cfg.SEED, 0)), *late, *super().build_hooks()]
        # Before the evaluation, whose hours a signal need not wait for.
        place = next((i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook)), len(hooks))
        hooks.insert(place, StopOnSignal(self.checkpointer, self._trainer.model))
        shown = self.cfg.TEST.PICTURES and self.cfg.TEST.EVAL_PERIOD and self.cfg.DATASETS.TEST
        if shown and comm.is_main_process():
            hooks.insert(place, ValidationPictures(self.cfg))
        return hooks

    def build_writers(self) -> list:
        """Build Detectron2's writers, which Weights & Biases may follow."""
        if self.cfg.WANDB_PROJECT:
            _mirror_tensorboard(self.cfg)
        return super().build_writers()

    def build_checkpointer(self, model: Any) -> DetectionCheckpointer:
        """Make the checkpointer of the whole detector and of the trainer's state."""
        return StrictCheckpointer(
            model, self.cfg.OUTPUT_DIR, config=self.cfg, trainer=weakref.proxy(self)
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build MODEL.META_ARCHITECTURE and log its size."""
        model = build_model(cfg)
        check_model(model, cfg)
        log_size(model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Build the endless training loader of DATASETS.TRAIN."""
        if has_references(cfg.DATASETS.TRAIN):
            return build_referring_train_loader_from_cfg(cfg)
        return build_detection_train_loader_from_cfg(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Build the loader of a test set: every image, or sentence, once over all processes."""
        if has_references([dataset_name]):
            return build_referring_test_loader_from_cfg(cfg, dataset_name)
        return build_detection_test_loader_from_cfg(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator | None:
        """Build the evaluator of a test set, which writes into OUTPUT_DIR/inference."""
        return build_evaluator(
            dataset_name,
            str(Path(cfg.OUTPUT_DIR) / "inference" / folder_name(dataset_name)),
            backend=cfg.TEST.BACKEND,
            fixed_ap=cfg.TEST.FIXED_AP,
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> Optimizer:
        """Build SOLVER.OPTIMIZER over the trainable parameters."""
        optimizer = build_optimizer(cfg, optimizer_params_from_cfg(cfg, model))
        return keep_idle_rows(optimizer, model)

    @classmethod
    def evaluate_weights(cls, cfg: CfgNode, *, resume: bool = False) -> OrderedDict:
        """Score MODEL.WEIGHTS without training, and verify TEST.EXPECTED_RESULTS.

        Without MODEL.WEIGHTS the model is scored as it is built; ``resume`` takes the last
        checkpoint of OUTPUT_DIR, if any.
        """
        model = cls.build_model(self_contained(cfg, resume=resume))
        # The checkpoint of a distiller is its student.
        checkpointer = StrictCheckpointer(getattr(model, "student", model), cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        results = cls.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator | None] | None = None,
    ) -> OrderedDict:
        """Score a model on DATASETS.TEST, each data set with its own vocabulary.

        Results by data set, by task, by metric; of a single data set as Detectron2 does, without
        its name. The file in OUTPUT_DIR adds the protocol of every data set.
        """
        check_finite(model, "the model is not scored")
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        given = [None] * len(names) if evaluators is None else evaluators
        model = with_test_time_augmentation(cfg, unwrap(model))
        warn_of_limit(cfg)
        results, protocols = OrderedDict(), {}
        # One set at a time, since each has classes of its own.
        for name, evaluator in zip(names, given, strict=True):
            made: AbstractContextManager[DatasetEvaluator | None] = nullcontext(evaluator)
            if evaluators is None:
                made = evaluator_of(cfg, model, name, cls.build_evaluator)
            with vocabulary_of(cfg, model, name), made as evaluator:
                only = only_set(cfg, name)
                results[name] = super().test(only, model, [evaluator])
                protocols[name] = protocol_of(cfg, model, name, evaluator)
        write_results(cfg.OUTPUT_DIR, results, protocols)
        return results if len(results) != 1 else results[names[0]]


def _mirror_tensorboard(cfg: CfgNode) -> None:
    """Begin a run of WANDB_PROJECT that follows all TensorBoard files written from now on."""
    try:
        import wandb  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            f"WANDB_PROJECT is {cfg.WANDB_PROJECT!r}, but wandb is not installed; "
            "pip install 'clipself_d2[wandb]', or leave the key empty"
        ) from error
    wandb.init(
        project=cfg.WANDB_PROJECT,
        name=cfg.OUTPUT_DIR,
        config=yaml.safe_load(cfg.dump()),
        sync_tensorboard=True,
        # A process may train one model after the other.
        reinit="finish_previous",
    )


def only_set(cfg: CfgNode, name: str) -> CfgNode:
    """Narrow a copy of a config to one of its test sets, with the proposals of that set."""
    files = cfg.DATASETS.PROPOSAL_FILES_TEST
    only = changed(cfg, "DATASETS.TEST", (name,))
    if len(files) == len(cfg.DATASETS.TEST):
        # Detectron2 pairs files and sets by their places.
        own = files[list(cfg.DATASETS.TEST).index(name)]
        only = changed(only, "DATASETS.PROPOSAL_FILES_TEST", (own,))
    return only


def log_size(model: nn.Module) -> None:
    """Log how many parameters a model has."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s: %d parameters, %d trained", type(model).__name__, total, trained)
