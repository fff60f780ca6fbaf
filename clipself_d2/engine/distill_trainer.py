"""Trainer of distillers: exact resume, and checkpoints that are the student's weights."""

import logging
import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn
from torch.utils.data import DataLoader

from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.data.build import build_distill_train_loader_from_cfg
from clipself_d2.distillation import RegionDistiller
from clipself_d2.engine.accumulation import unwrap
from clipself_d2.engine.evaluate import evaluate_regions
from clipself_d2.engine.idle_rows import keep_idle_rows
from clipself_d2.engine.trainer import StrictCheckpointer, Trainer, build_adamw

logger = logging.getLogger(__name__)


class _RawStudent:
    """The unmixed student as a checkpointable beside the mixed weights."""

    def __init__(self, student: nn.Module) -> None:
        self._student = student

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._student.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._student.load_state_dict(state, strict=True)


class StudentCheckpointer(StrictCheckpointer):
    """Saves the student alone, mixed with its teacher where MODEL.DISTILL.STUDENT_SHARE is below 1.

    Args:
        distiller: Model with ``student`` and ``student_state_dict(alpha)``.
        save_dir: Folder of the checkpoints.
        alpha: Share of the student in the saved weights.
        trainer: The trainer, for its state.

    Raises:
        ValueError: If the student cannot be mixed with its teacher.
    """

    def __init__(
        self, *, distiller: RegionDistiller, save_dir: str, alpha: float, trainer: object
    ) -> None:
        distiller.check_share(alpha)
        super().__init__(distiller.student, save_dir, trainer=trainer)
        self._distiller, self._alpha = distiller, alpha
        if alpha < 1.0:
            self.add_checkpointable("raw_student", _RawStudent(distiller.student))

    def save(self, name: str, **kwargs: object) -> None:
        """Write ``<name>.pth``, whose "model" can be a detector's MODEL.CLIP.WEIGHTS.

        Args:
            name: File name without the ending.
            kwargs: Further entries of the file.
        """
        super().save(name, model=self._distiller.student_state_dict(self._alpha), **kwargs)


class DistillTrainer(Trainer):
    """Trainer of META_ARCHITECTUREs of distill/.

    Differs from ``Trainer``: the sample of every iteration is a function of the seed and the
    iteration, so that a resumed run equals an uninterrupted one.

    Args:
        cfg: The whole config.
    """

    @staticmethod
    def complete_config(cfg: CfgNode, model: Any) -> CfgNode:
        """Let INPUT.REGIONS.CROP_SIZE 0 be the teacher's native size.

        Args:
            cfg: The whole config.
            model: The distiller.

        Returns:
            A config with the size in pixels.
        """
        if cfg.INPUT.REGIONS.CROP_SIZE > 0:
            return cfg
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.REGIONS.CROP_SIZE = model.teacher.image_size
        cfg.freeze()
        return cfg

    def build_checkpointer(self, model: Any) -> DetectionCheckpointer:
        """Make the checkpointer of the student.

        Args:
            model: The distiller, not wrapped.

        Returns:
            A checkpointer that keeps the student and the trainer's state.
        """
        return StudentCheckpointer(
            distiller=model,
            save_dir=self.cfg.OUTPUT_DIR,
            alpha=self.cfg.MODEL.DISTILL.STUDENT_SHARE,
            trainer=weakref.proxy(self),
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of OUTPUT_DIR or MODEL.WEIGHTS, and place the data loader.

        Args:
            resume: Whether to go on from the last checkpoint.
        """
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self._trainer.reset_data_loader(
                lambda: build_distill_train_loader_from_cfg(self.cfg, start_iter=self.start_iter)
            )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Build the loader of regions and crops from the first iteration.

        Args:
            cfg: The whole config.

        Returns:
            An endless loader.
        """
        return build_distill_train_loader_from_cfg(cfg, start_iter=0)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> torch.optim.Optimizer:
        """Build AdamW over the student, without decay on norms, biases and scalars.

        A ResNet may also be trained by Detectron2's SGD, as RegionCLIP was published.

        Args:
            cfg: The whole config; SOLVER.OPTIMIZER is AdamW, or SGD for a ResNet.
            model: The distiller.

        Returns:
            The optimiser.

        Raises:
            ValueError: If SOLVER.OPTIMIZER is neither, or nothing is trained.
        """
        if cfg.SOLVER.OPTIMIZER == "SGD" and isinstance(model.student, ResNetTower):
            return super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "AdamW":
            raise ValueError(
                f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; distill a ViT with AdamW, a ResNet "
                "with AdamW or SGD"
            )
        plain_names = model.student.no_weight_decay_names()
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in model.student.named_parameters():
            if parameter.requires_grad:
                (plain if name in plain_names else decayed).append(parameter)
        if not decayed and not plain:
            raise ValueError("nothing of the student is trained; set MODEL.CLIP.TRAINABLE_BLOCKS")
        groups = [
            {"params": decayed, "weight_decay": cfg.SOLVER.WEIGHT_DECAY},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer = build_adamw(cfg, [group for group in groups if group["params"]])
        return keep_idle_rows(optimizer, model.student)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> OrderedDict:
        """Score region features on DATASETS.TEST.

        Args:
            cfg: The whole config.
            model: The distiller, wrapped or not.
            evaluators: Unused; regions have one evaluator.

        Returns:
            Results by data set, by metric.
        """
        if evaluators is not None:
            raise ValueError("regions have one evaluator; pass none")
        return evaluate_regions(cfg, unwrap(model))
