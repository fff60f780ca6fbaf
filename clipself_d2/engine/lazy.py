"""Training and evaluation of LazyConfig recipes, as Detectron2's lazyconfig_train_net does."""

import argparse
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.engine import AMPTrainer, SimpleTrainer, default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from clipself_d2.backbones.compatibility import check_model
from clipself_d2.command_line.devices import find_device
from clipself_d2.command_line.errors import is_users, sentence
from clipself_d2.command_line.ranges import check_fields, name_fields, near_key
from clipself_d2.engine.evaluate import Protocol, own_protocol, reads_text, write_results
from clipself_d2.engine.exact_steps import ExactSteps
from clipself_d2.engine.late_metrics import late_metrics
from clipself_d2.engine.loop import adapt_loop, amp_runs, parallel_model
from clipself_d2.engine.solver import keep_idle_rows
from clipself_d2.engine.trainer import log_size
from clipself_d2.parts.recipe_files import find_config
from clipself_d2.parts.text_embeddings import (
    dataset_embeddings,
    dataset_vocabulary,
    scored_vocabulary,
)
from clipself_d2.runs.checkpointer import StrictCheckpointer
from clipself_d2.runs.checkpoints import check_finite
from clipself_d2.runs.folder import claim_folder
from clipself_d2.runs.interrupts import StopOnSignal
from clipself_d2.vocabulary import use_vocabulary

logger = logging.getLogger(__name__)

# Parts of a config that a training needs.
TRAINING_PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
# Tells a key that is not there from one whose value is None.
_ABSENT = object()


def load_lazy_config(
    config_file: str, overrides: list[str], needed: Sequence[str] = TRAINING_PARTS
) -> DictConfig:
    """Read a lazy config, which defines all of ``needed``, and ``key=value`` overrides.

    A FileNotFoundError or ValueError says that the file is missing or no lazy config, or that an
    override has no such key, which Detectron2 would add in silence.
    """
    config_file = find_config(config_file)
    if not Path(config_file).is_file() or Path(config_file).suffix != ".py":
        raise FileNotFoundError(
            f"--config-file {config_file!r} is no lazy config; name a .py file, such as "
            "configs/plug_in/vitdet_mask_rcnn.py (yaml files go to tools/train_net.py)"
        )
    try:
        cfg = LazyConfig.load(config_file)
    except Exception as error:  # The file is code of the user's.
        raise ValueError(
            f"{config_file} cannot be run as a lazy config: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{config_file} defines nothing; it is no lazy config")
    missing = [name for name in needed if name not in cfg]
    if missing:
        raise ValueError(f"{config_file} does not define {', '.join(missing)}; add it to the file")
    for override in overrides:
        key, separator, _ = override.lstrip("~+").partition("=")
        if not separator:
            raise ValueError(f"override {override!r} is not of the form key=value")
        if OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT and not override.startswith("+"):
            raise ValueError(
                f"{key} in {override!r} is no key of {config_file}{near_key(key, cfg)}; write "
                f"+{override} to add it"
            )
    try:
        cfg = LazyConfig.apply_overrides(cfg, [text.lstrip("+") for text in overrides])
    except Exception as error:  # All that is read here is the user's.
        raise ValueError(f"overrides {overrides} do not fit {config_file}: {error}") from error
    check_fields(cfg)
    device = OmegaConf.select(cfg, "train.device", default=None)
    if device is not None:
        is_asked = any(text.startswith("train.device=") for text in overrides)
        cfg.train.device = find_device(device, "train.device", is_asked=is_asked)
    return cfg


def build_lazy_model(cfg: DictConfig) -> nn.Module:
    """Build the model on the CPU, and refuse parts that do not fit one another.

    A ValueError names the key of a feature, strides or an order of colour channels that do not fit.
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
    """Train or evaluate a lazy recipe; errors of users name the fields of the config."""
    try:
        return _run_lazy(args)
    except Exception as error:
        if not is_users(error):
            raise
        raise ValueError(name_fields(sentence(error))) from error


def _run_lazy(args: argparse.Namespace) -> OrderedDict:
    cfg = load_lazy_config(args.config_file, args.opts)
    if comm.is_main_process():
        claim_folder(cfg.train.output_dir, "train.output_dir")
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="clipself_d2")
    if not args.eval_only:
        return train_lazy(cfg, resume=args.resume)
    model = build_lazy_model(cfg).to(cfg.train.device)
    checkpointer = StrictCheckpointer(model, cfg.train.output_dir)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    return score_lazy(cfg, model)


def train_lazy(cfg: DictConfig, *, resume: bool = False) -> OrderedDict:
    """Train, with checkpoints, logs and evaluation, and score the last weights."""
    model = build_lazy_model(cfg).to(cfg.train.device)
    log_size(model)
    # The call that makes parameter groups waits for it, as in Detectron2's recipes.
    cfg.optimizer.params.model = model
    optimizer = keep_idle_rows(instantiate(cfg.optimizer), model)
    loader = instantiate(cfg.dataloader.train)
    parallel = parallel_model(model, **cfg.train.ddp)
    has_amp = amp_runs(str(cfg.train.device), cfg.train.amp.enabled)
    trainer = (AMPTrainer if has_amp else SimpleTrainer)(parallel, loader, optimizer)
    adapt_loop(trainer)
    checkpointer = StrictCheckpointer(
        model, cfg.train.output_dir, config=OmegaConf.to_container(cfg), trainer=trainer
    )
    results: OrderedDict = OrderedDict()

    def evaluate() -> OrderedDict:
        results.clear()
        results.update(score_lazy(cfg, model))
        return results

    scheduler = instantiate(cfg.lr_multiplier)
    seed = max(int(cfg.train.get("seed", 0)), 0)
    late = late_metrics(trainer, str(cfg.train.device), cfg.train.log_period)
    timer, rates = hooks.IterationTimer(), hooks.LRScheduler(scheduler=scheduler)
    # The order matters: draws outside of all others, weights saved before hours of evaluation.
    made = [ExactSteps(seed), *late, timer, rates]
    if comm.is_main_process():
        made.append(hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
    made.append(StopOnSignal(checkpointer, parallel))
    made.append(hooks.EvalHook(cfg.train.eval_period, evaluate))
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        made.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
    trainer.register_hooks(made)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    # A checkpoint has the number of the last iteration that was done.
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return results


def score_lazy(cfg: DictConfig, model: nn.Module) -> OrderedDict:
    """Score a model on ``dataloader.test``, with the vocabulary of that data set.

    Results by task, by metric; empty without an evaluator. The file in ``train.output_dir`` adds
    the protocol.
    """
    if "evaluator" not in cfg.dataloader:
        return OrderedDict()
    check_finite(model, "the model is not scored")
    name = _test_set(cfg)
    evaluator: Any = instantiate(cfg.dataloader.evaluator)
    protocol: Protocol = {"evaluator": MetadataCatalog.get(name).get("evaluator_type")}
    protocol |= own_protocol(evaluator)
    switch: AbstractContextManager[object] = nullcontext()
    words = next(embedding_calls(cfg.model), None)
    if words is not None:
        # The call as the model makes it, but with the words of the data set that is scored.
        options = {str(key): words[key] for key in words if key != "_target_"}
        embeddings = dataset_embeddings(**{**options, "name": name})
        tested = scored_vocabulary(name, dataset_vocabulary(words.name))
        embeddings = embeddings.with_vocabulary(tested)
        switch = use_vocabulary(model, embeddings)
        protocol |= {"clip": words.clip, "prompts": embeddings.templates, "names": "own"}
    elif reads_text(model):
        logger.warning(
            "%s is scored with the classes that the model was built with: its text embeddings do "
            "not come from dataset_embeddings",
            name,
        )
    with switch:
        results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    write_results(cfg.train.output_dir, {name: results}, {name: protocol})
    return OrderedDict(results)


def _test_set(cfg: DictConfig) -> str:
    """Name of the data set that a lazy config scores."""
    for key in ("dataloader.evaluator.dataset_name", "dataloader.test.dataset.names"):
        name = OmegaConf.select(cfg, key, default=None)
        if isinstance(name, str):
            return name
    raise ValueError(
        "the config does not say in one word which data set is scored; set "
        "dataloader.evaluator.dataset_name"
    )


def embedding_calls(node: object) -> Iterator[DictConfig]:
    """Find the calls of ``dataset_embeddings`` in a lazy model, with their arguments by name."""
    target = f"{dataset_embeddings.__module__}.{dataset_embeddings.__qualname__}"
    if isinstance(node, DictConfig):
        if node.get("_target_") in (dataset_embeddings, target):
            yield node
        for key in node:
            yield from embedding_calls(node[key])
    elif isinstance(node, ListConfig):
        for item in node:
            yield from embedding_calls(item)
