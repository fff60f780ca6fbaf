"""Trainer of distillers: exact resume, and checkpoints that are the student's weights."""

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn
from torch.utils.data import DataLoader

from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.data.build import (
    build_distill_train_loader_from_cfg,
    build_region_test_loader_from_cfg,
)
from clipself_d2.distillation import RegionDistiller
from clipself_d2.engine.accumulation import unwrap
from clipself_d2.engine.evaluate import REGION_CLASSIFICATION, test_vocabulary
from clipself_d2.engine.solver import build_optimizer, keep_idle_rows
from clipself_d2.engine.trainer import Trainer
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.parts.text_embeddings import read_text_embeddings
from clipself_d2.runs.checkpointer import StrictCheckpointer, changed


class StudentCheckpointer(StrictCheckpointer):
    """Saves the student alone, mixed with its teacher where MODEL.DISTILL.STUDENT_SHARE is below 1.

    Args:
        distiller: Model with ``student`` and ``student_state_dict(alpha)``.
        save_dir: Folder of the checkpoints.
        alpha: Share of the student in the saved weights.
        trainer: The trainer, for its state.
        config: Config of the run.

    Raises:
        ValueError: If the student cannot be mixed with its teacher.
    """

    def __init__(
        self,
        *,
        distiller: RegionDistiller,
        save_dir: str,
        alpha: float,
        trainer: object,
        config: CfgNode | None = None,
    ) -> None:
        distiller.check_share(alpha)
        super().__init__(distiller.student, save_dir, config=config, trainer=trainer)
        self._distiller, self._alpha = distiller, alpha
        if alpha < 1.0:
            self.add_checkpointable("raw_student", distiller.student)
        if (averaged := getattr(distiller, "averaged", None)) is not None:
            self.add_checkpointable("averaged_student", averaged)

    def save(self, name: str, **kwargs: object) -> None:
        """Write ``<name>.pth``, whose "model" can be a detector's MODEL.CLIP.WEIGHTS."""
        super().save(name, model=self._distiller.student_state_dict(self._alpha), **kwargs)


@contextmanager
def saved_weights(distiller: RegionDistiller, alpha: float) -> Iterator[None]:
    """Give a student, for the time of a with block, the weights that its checkpoint has.

    Its own are back afterwards, bit for bit. ``alpha`` is the share of the student in the
    checkpoint.
    """
    if alpha == 1.0:
        yield
        return
    student = distiller.student
    # Clones, since loading writes into the tensors of the state.
    raw = {key: value.clone() for key, value in student.state_dict().items()}
    student.load_state_dict(distiller.student_state_dict(alpha))
    try:
        yield
    finally:
        student.load_state_dict(raw)


class DistillTrainer(Trainer):
    """Trainer of META_ARCHITECTUREs of distillation/.

    Differs from ``Trainer``: checkpoints are the student's weights; region features are scored.
    """

    def build_checkpointer(self, model: Any) -> DetectionCheckpointer:
        """Make the checkpointer of a distiller's student and the trainer's state."""
        return StudentCheckpointer(
            distiller=model,
            save_dir=self.cfg.OUTPUT_DIR,
            alpha=self.cfg.MODEL.DISTILL.STUDENT_SHARE,
            # A proxy, or each would keep the other, and the model, from being freed.
            trainer=weakref.proxy(self),
            config=self.cfg,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Build the endless loader of regions and crops."""
        return build_distill_train_loader_from_cfg(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Build the loader of a panoptic set's regions: every image once over all processes."""
        return build_region_test_loader_from_cfg(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator of region features, with the text embeddings of the data set.

        A ValueError says that the data set has no panoptic ground truth.
        """
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind != REGION_CLASSIFICATION:
            raise ValueError(
                f"DATASETS.TEST holds {dataset_name}, whose evaluator_type is {kind!r}; region "
                "features are scored on panoptic ground truth, for example emoji_panoptic_val"
            )
        vocabulary, _ = test_vocabulary(cfg, dataset_name)
        embeddings = read_text_embeddings(cfg, vocabulary, same_names=False)
        return build_evaluator(
            dataset_name, cfg.OUTPUT_DIR, text_embeddings=embeddings.embeddings_KD.to(torch.float32)
        )

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> torch.optim.Optimizer:
        """Build AdamW over the student, without decay on norms, biases and scalars.

        A ResNet may also be trained by Detectron2's SGD, as RegionCLIP was published; other
        optimisers are a ValueError.
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
        rate = cfg.SOLVER.BASE_LR * cfg.SOLVER.BACKBONE_MULTIPLIER
        groups = [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for parameters, decay in ((decayed, cfg.SOLVER.WEIGHT_DECAY), (plain, 0.0))
            if parameters
        ]
        optimizer = build_optimizer(cfg, groups)
        return keep_idle_rows(optimizer, model.student)

    @classmethod
    def evaluate_weights(cls, cfg: CfgNode, *, resume: bool = False) -> OrderedDict:
        """Score MODEL.WEIGHTS as they are: a checkpoint of a mixed student is the mix already."""
        as_it_is = changed(cfg, "MODEL.DISTILL.STUDENT_SHARE", 1.0)
        return super().evaluate_weights(as_it_is, resume=resume)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, *arguments: Any, **options: Any) -> OrderedDict:
        """Score region features on DATASETS.TEST with the weights that are saved.

        MODEL.DISTILL.STUDENT_SHARE below 1 mixes student and teacher.
        """
        distiller = unwrap(model)
        with saved_weights(distiller, cfg.MODEL.DISTILL.STUDENT_SHARE):
            return super().test(cfg, distiller, *arguments, **options)
