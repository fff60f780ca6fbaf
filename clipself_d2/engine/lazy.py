"""Training and evaluation of LazyConfig recipes, as Detectron2's lazyconfig_train_net does."""

import argparse
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    create_ddp_model,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.engine.train_loop import HookBase
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from clipself_d2.backbones.compatibility import check_model

logger = logging.getLogger(__name__)


# Parts of a config that a training needs.
TRAINING_PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


def load_lazy_config(
    config_file: str, overrides: list[str], needed: Sequence[str] = TRAINING_PARTS
) -> DictConfig:
    """Read a lazy config and ``key=value`` overrides.

    Args:
        config_file: Path of the Python file.
        overrides: As in ``train.max_iter=20``.
        needed: Names that the file defines.

    Returns:
        The config.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is no lazy config, a part of it is missing, or an override has no
            such key. Detectron2 would add the key in silence.
    """
    if not Path(config_file).is_file() or Path(config_file).suffix != ".py":
        raise FileNotFoundError(
            f"--config-file {config_file!r} is no lazy config; name a .py file, such as "
            "configs/plug_in/vitdet_mask_rcnn.py (yaml files go to tools/train_net.py)"
        )
    cfg = LazyConfig.load(config_file)
    missing = [name for name in needed if name not in cfg]
    if missing:
        raise ValueError(f"{config_file} does not define {', '.join(missing)}; add it to the file")
    for override in overrides:
        key, separator, _ = override.lstrip("~+").partition("=")
        if not separator:
            raise ValueError(f"override {override!r} is not of the form key=value")
        if OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT and not override.startswith("+"):
            raise ValueError(
                f"{key} in {override!r} is no key of {config_file}; write +{override} to add it"
            )
    try:
        return LazyConfig.apply_overrides(cfg, [text.lstrip("+") for text in overrides])
    except (OmegaConfBaseException, AssertionError) as error:
        raise ValueError(f"overrides {overrides} do not fit {config_file}: {error}") from error


_ABSENT = object()


def build_lazy_model(cfg: DictConfig) -> nn.Module:
    """Build the model, and refuse parts that do not fit one another.

    Args:
        cfg: Config with ``model``, and the loaders that feed it, if any.

    Returns:
        The model, on the CPU.

    Raises:
        ValueError: If a feature, strides or the order of colour channels do not fit; the sentence
            names the key.
    """
    try:
        model: nn.Module = instantiate(cfg.model)
    except KeyError as error:
        raise ValueError(
            f"the model asks for {error} which is not there; check the names of features in model "
            "(head_in_features, in_features) against those of model.backbone"
        ) from error
    except AssertionError as error:
        raise ValueError(
            f"the model cannot be built: {error or 'an assertion of Detectron2 failed'}; check "
            "model.roi_heads.box_pooler.scales and the strides of model"
        ) from error
    check_model(model)
    wanted = getattr(model, "input_format", None) or "RGB"
    for key in ("dataloader.train.mapper.image_format", "dataloader.test.mapper.image_format"):
        given = OmegaConf.select(cfg, key, default=None)
        if given is not None and given != wanted:
            raise ValueError(f"{key} is {given}, but the model reads {wanted}; set {key}={wanted}")
    return model


def run_lazy(args: argparse.Namespace) -> OrderedDict:
    """Train or evaluate a lazy recipe.

    Args:
        args: Namespace of ``detectron2.engine.default_argument_parser``.

    Returns:
        Results of the evaluation.

    Raises:
        FileNotFoundError: If the config is missing.
        ValueError: If a key is unknown.
    """
    cfg = load_lazy_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="clipself_d2")
    if not args.eval_only:
        return train_lazy(cfg, resume=args.resume)
    model = build_lazy_model(cfg).to(cfg.train.device)
    DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
    return score_lazy(cfg, model)


def train_lazy(cfg: DictConfig, *, resume: bool = False) -> OrderedDict:
    """Train, with checkpoints, logs and evaluation, and score the last weights.

    Args:
        cfg: Config with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``.
        resume: Whether to go on from the last checkpoint in ``train.output_dir``.

    Returns:
        Results of the last evaluation.
    """
    model = build_lazy_model(cfg).to(cfg.train.device)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s: %d parameters, %d trained", type(model).__name__, total, trained)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    devices = {} if str(cfg.train.device).startswith("cuda") else {"device_ids": None}
    parallel = create_ddp_model(model, **dict(cfg.train.ddp), **devices)
    loop = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = loop(parallel, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    # The last evaluation's results stay on the hook.
    evaluation = _Evaluation(cfg, parallel)
    trainer.register_hooks(_hooks(cfg, trainer, checkpointer, evaluation))
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return evaluation.results


class _Evaluation(hooks.EvalHook):
    """Detectron2's periodic evaluation, which also keeps the last results."""

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        self.results: OrderedDict = OrderedDict()

        def evaluate() -> OrderedDict:
            self.results = score_lazy(cfg, model)
            return self.results

        super().__init__(cfg.train.eval_period, evaluate)


def _hooks(
    cfg: DictConfig,
    trainer: SimpleTrainer,
    checkpointer: DetectionCheckpointer,
    evaluation: HookBase,
) -> list[HookBase]:
    made: list[HookBase] = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
    ]
    is_main = comm.is_main_process()
    if is_main:
        made.append(hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
    made.append(evaluation)
    if is_main:
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        made.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
    return made


def score_lazy(cfg: DictConfig, model: nn.Module) -> OrderedDict:
    """Score a model on ``dataloader.test``.

    Args:
        cfg: Config with ``dataloader.test`` and ``dataloader.evaluator``.
        model: The model, wrapped or not.

    Returns:
        Results by task, by metric; empty without an evaluator.
    """
    if "evaluator" not in cfg.dataloader:
        return OrderedDict()
    evaluator: Any = instantiate(cfg.dataloader.evaluator)
    with torch.no_grad():
        results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    print_csv_format(results)
    return OrderedDict(results)
