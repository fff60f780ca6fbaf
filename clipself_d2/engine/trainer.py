"""Detectron2's trainer, with AdamW, training on several CPU processes, and our evaluators."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipself_d2.data.build import build_detection_train_loader_from_cfg
from clipself_d2.data.referring_loader import (
    build_referring_train_loader_from_cfg,
    has_references,
)
from clipself_d2.engine.accumulation import AccumulatingModel, unwrap
from clipself_d2.engine.evaluate import evaluate_detector
from clipself_d2.engine.idle_rows import keep_idle_rows
from clipself_d2.engine.lr_decay import build_sgd, optimizer_params_from_cfg
from clipself_d2.engine.parameter_groups import build_adam

logger = logging.getLogger(__name__)


class StrictCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer that refuses weights of another model.

    Detectron2 skips parameters whose shape differs and trains or evaluates what is left.
    """

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        if incompatible.incorrect_shapes:
            name, got, expected = incompatible.incorrect_shapes[0]
            raise ValueError(
                f"the checkpoint's {name} has shape {tuple(got)}, the model's {tuple(expected)}, "
                f"and {len(incompatible.incorrect_shapes) - 1} more differ; it is of another "
                "model: check MODEL.WEIGHTS against MODEL.CLIP.NAME and the --config-file"
            )
        loaded = len(self.model.state_dict()) - len(incompatible.missing_keys)
        if loaded == 0:
            raise ValueError(
                "the checkpoint has no parameter of this model; check MODEL.WEIGHTS (a distilled "
                "image tower goes to MODEL.CLIP.WEIGHTS)"
            )
        super()._log_incompatible_keys(incompatible)


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that first clips the norm of all gradients together.

    Detectron2's own clipping is of each parameter by itself.

    Args:
        params: Parameters or groups of them; the name is torch's.
        max_norm: Largest L2 norm of all gradients.
        kwargs: Keyword arguments of AdamW.
    """

    def __init__(self, params: list[dict], *, max_norm: float, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.max_norm = max_norm

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Clip, then update.

        Args:
            closure: Unused; Detectron2's loops give none.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.max_norm)
        super().step(closure)


def build_adamw(cfg: CfgNode, groups: list[dict]) -> torch.optim.Optimizer:
    """Make AdamW from the SOLVER keys.

    Args:
        cfg: Config with SOLVER.BASE_LR, WEIGHT_DECAY, ADAM_BETAS, ADAM_EPS and CLIP_GRADIENTS.
        groups: Parameter groups.

    Returns:
        The optimiser, with gradient clipping where the config asks for it; CLIP_TYPE may also be
        full_model, the norm of all gradients together.
    """
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED and clipping.CLIP_TYPE == "full_model":
        cls = partial(ClippedAdamW, max_norm=clipping.CLIP_VALUE)
    else:
        cls = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return cls(
        groups,
        lr=cfg.SOLVER.BASE_LR,
        betas=tuple(cfg.SOLVER.ADAM_BETAS),
        eps=cfg.SOLVER.ADAM_EPS,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )


def self_contained(cfg: CfgNode) -> CfgNode:
    """Ignore MODEL.CLIP.WEIGHTS where MODEL.WEIGHTS brings the tower with it.

    Args:
        cfg: The whole config.

    Returns:
        A config for a model that is then filled from MODEL.WEIGHTS.
    """
    if not cfg.MODEL.WEIGHTS:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.CLIP.WEIGHTS = ""
    cfg.freeze()
    return cfg


class Trainer(DefaultTrainer):
    """Trainer of detectors.

    Differs from ``DefaultTrainer``: the optimiser follows SOLVER.OPTIMIZER, several processes may
    train on CPUs, checkpoints of another model are refused, and test data sets are scored with
    their own vocabularies.

    Args:
        cfg: The whole config.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        self.cfg = cfg = self.complete_config(cfg, model)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        devices = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        parallel = create_ddp_model(model, broadcast_buffers=False, **devices)
        self._trainer = self._build_loop(cfg, parallel, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(model)
        self.register_hooks(self.build_hooks())

    @staticmethod
    def complete_config(cfg: CfgNode, model: Any) -> CfgNode:
        """Replace values that stand for "as the model has it".

        Args:
            cfg: The whole config.
            model: The model built from it.

        Returns:
            The config the trainer goes on with.
        """
        return cfg

    @classmethod
    def _build_loop(
        cls, cfg: CfgNode, model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer
    ) -> SimpleTrainer:
        """Detectron2's loop, in mixed precision and with accumulation where the config asks."""
        steps = cfg.SOLVER.ACCUMULATION_STEPS
        options: dict[str, Any] = {"zero_grad_before_forward": steps > 1}
        backward: Callable[[Tensor], None] = torch.Tensor.backward
        loop = SimpleTrainer
        if cls._use_amp(cfg):
            loop = AMPTrainer
            # bf16 has the exponents of fp32, so that gradients need no scaling.
            is_bf16 = cfg.MODEL.CLIP.PRECISION == "bf16"
            scaler = torch.amp.GradScaler("cuda", enabled=not is_bf16)
            options["precision"] = torch.bfloat16 if is_bf16 else torch.float16
            options["grad_scaler"] = scaler

            def backward(loss: Tensor) -> None:
                scaler.scale(loss).backward()

        if steps != 1:
            model = AccumulatingModel(model, steps=steps, backward=backward)
        return loop(model, loader, optimizer, **options)

    @staticmethod
    def _use_amp(cfg: CfgNode) -> bool:
        if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
            logger.warning(
                "SOLVER.AMP.ENABLED is ignored on %s; MODEL.CLIP.PRECISION bf16 speeds up the "
                "tower there",
                cfg.MODEL.DEVICE,
            )
            return False
        if cfg.MODEL.CLIP.PRECISION == "fp16" and not cfg.SOLVER.AMP.ENABLED:
            logger.warning(
                "MODEL.CLIP.PRECISION fp16 without SOLVER.AMP.ENABLED trains without loss scaling; "
                "small gradients of the tower become zero"
            )
        return bool(cfg.SOLVER.AMP.ENABLED)

    def build_checkpointer(self, model: Any) -> DetectionCheckpointer:
        """Make the checkpointer of the whole detector.

        Args:
            model: The model, not wrapped.

        Returns:
            A checkpointer that also keeps the trainer's state.
        """
        return StrictCheckpointer(model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build MODEL.META_ARCHITECTURE and log its size.

        Args:
            cfg: The whole config.

        Returns:
            The model on its device.
        """
        model = build_model(cfg)
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        logger.info("%s: %d parameters, %d trained", type(model).__name__, total, trained)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Build the training loader of DATASETS.TRAIN.

        Args:
            cfg: The whole config.

        Returns:
            An endless loader.
        """
        if has_references(cfg.DATASETS.TRAIN):
            return build_referring_train_loader_from_cfg(cfg)
        return build_detection_train_loader_from_cfg(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> torch.optim.Optimizer:
        """Build SOLVER.OPTIMIZER over the trainable parameters.

        Args:
            cfg: The whole config.
            model: The model.

        Returns:
            The optimiser.

        Raises:
            ValueError: If SOLVER.OPTIMIZER is neither SGD nor AdamW, or clipping does not fit it.
        """
        clipping = cfg.SOLVER.CLIP_GRADIENTS
        if cfg.SOLVER.OPTIMIZER == "SGD":
            if clipping.ENABLED and clipping.CLIP_TYPE == "full_model":
                raise ValueError(
                    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE full_model goes with SOLVER.OPTIMIZER AdamW; "
                    "use value or norm with SGD"
                )
            optimizer = build_sgd(cfg, optimizer_params_from_cfg(cfg, model))
            return keep_idle_rows(optimizer, model)
        if cfg.SOLVER.OPTIMIZER == "Adam":
            return build_adam(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "AdamW":
            raise ValueError(
                f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}; use SGD, AdamW or Adam"
            )
        return keep_idle_rows(build_adamw(cfg, optimizer_params_from_cfg(cfg, model)), model)

    @classmethod
    def evaluate_weights(cls, cfg: CfgNode) -> OrderedDict:
        """Score MODEL.WEIGHTS without training.

        Args:
            cfg: The whole config; without MODEL.WEIGHTS the model is scored as it is built.

        Returns:
            As ``test``.
        """
        cfg = self_contained(cfg)
        model = cls.build_model(cfg)
        target = getattr(model, "student", model)
        StrictCheckpointer(target, cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
        return cls.test(cfg, model)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> OrderedDict:
        """Score the detector on DATASETS.TEST.

        Args:
            cfg: The whole config.
            model: The detector, wrapped or not.
            evaluators: Unused; evaluators follow each data set's metadata.

        Returns:
            Results by data set, by task, by metric.
        """
        if evaluators is not None:
            raise ValueError("evaluators follow the data sets' evaluator_type; pass none")
        return evaluate_detector(cfg, unwrap(model))
