"""What every command of tools/ shares: reading the config and reporting the user's errors."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from clipself_d2.command_line.devices import find_device
from clipself_d2.command_line.errors import is_users, sentence
from clipself_d2.command_line.launch import run_processes
from clipself_d2.command_line.projects import add_project_keys
from clipself_d2.command_line.ranges import check_registered, check_values, near_key
from clipself_d2.config import add_clipself_config
from clipself_d2.data.datasets.custom import resolve_dataset_names
from clipself_d2.parts.config_files import merge_config_file
from clipself_d2.parts.recipe_files import find_config
from clipself_d2.runs.folder import claim_folder
from clipself_d2.runs.interrupts import raising_sigterm


def load_config(config_file: str, overrides: list[str]) -> CfgNode:
    """Read a yaml file ("" keeps the defaults) and alternating KEY VALUE overrides.

    The merged config is not frozen; MODEL.DEVICE follows the machine where the file, not the
    overrides, asks for a GPU that is not there. A FileNotFoundError or ValueError names the missing
    file, the unknown key, or the value of another type or out of range.
    """
    cfg = get_cfg()
    add_clipself_config(cfg)
    config_file = find_config(config_file)
    source = config_file
    try:
        if config_file:
            if not Path(config_file).is_file():
                raise FileNotFoundError(f"--config-file {config_file} does not exist")
            if Path(config_file).suffix == ".py":
                raise ValueError(
                    f"--config-file {config_file} is a LazyConfig, expected yaml; train and "
                    "evaluate it with tools/lazyconfig_train_net.py, show it with tools/demo.py"
                )
            add_project_keys(cfg, config_file)
            merge_config_file(cfg, config_file)
        source = "the command line"
        cfg.merge_from_list(overrides)
    except (KeyError, AssertionError) as error:
        text = str(error.args[0] if error.args else error)
        # yacs ends with the key that is none: "Non-existent config key: ...".
        wrong = text.rpartition("key: ")[2] if "key: " in text else ""
        raise ValueError(
            f"{text} in {source}{near_key(wrong, cfg)}; see docs/config.md and "
            "Detectron2's config reference for the keys, and give overrides as KEY VALUE pairs"
        ) from error
    except (yaml.YAMLError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{source} cannot be read as keys and values ({sentence(error)}); correct it, or the "
            "_BASE_ that it names"
        ) from error
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{error} in {source}") from error
    check_values(cfg)
    is_asked = "MODEL.DEVICE" in overrides[::2]
    cfg.MODEL.DEVICE = find_device(cfg.MODEL.DEVICE, "MODEL.DEVICE", is_asked=is_asked)
    return cfg


def start_logging(output: str | None = None) -> None:
    """Show the messages of Detectron2, fvcore and this plugin, also in ``log.txt`` of a folder."""
    rank = comm.get_rank()
    for name in ("detectron2", "fvcore", "clipself_d2"):
        setup_logger(output, distributed_rank=rank, name=name)


def set_up(args: argparse.Namespace) -> CfgNode:
    """Read the config of a parsed command line, register its data sets, and start the logging.

    The config is frozen; a FileNotFoundError or ValueError says what is faulty.
    """
    cfg = load_config(args.config_file, args.opts)
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, cfg.MODEL.VOCABULARY.DATASET]
    resolve_dataset_names(names)
    if not args.eval_only:
        check_registered(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
    check_registered(cfg.DATASETS.TEST, "DATASETS.TEST")
    cfg.freeze()
    if comm.is_main_process():
        claim_folder(cfg.OUTPUT_DIR)
    _keep_dumps_off_terminal(cfg.OUTPUT_DIR)
    # It opens the file itself, which may be a recipe of the package.
    args.config_file = find_config(args.config_file)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="clipself_d2")
    if not getattr(args, "debug", False):
        logging.getLogger("detectron2.engine.train_loop").addFilter(_ShortUserErrors())
    return cfg


# What fills screens, or says nothing: it stands in log.txt and, of configs, in config.yaml.
_FILE_ONLY = (
    "Environment info",
    "Contents of args.config_file",
    "Running with full config",
    "Per-category ",
    "[DetectionCheckpointer] Loading from  ...",
)


def _keep_dumps_off_terminal(output_dir: str) -> None:
    """Leave long tables to the log file; Detectron2 then finds its loggers as they are."""
    # Without a name it is Detectron2's own logger.
    for options in ({"name": "fvcore"}, {}):
        logger = setup_logger(output_dir, distributed_rank=comm.get_rank(), **options)
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(lambda record: not record.getMessage().startswith(_FILE_ONLY))


class _ShortUserErrors(logging.Filter):
    """Takes the traceback off what Detectron2 logs of a user's error; the tool reports it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] and is_users(record.exc_info[1]):
            record.exc_info = None
        return True


def run_training_tool(trainer: type[DefaultTrainer], args: argparse.Namespace) -> int:
    """Be a train_net: start the processes, train or evaluate; returns as ``run_tool``."""
    return launch_tool(_train_or_evaluate, (trainer, args), args)


def launch_tool(function: Callable[..., object], arguments: tuple, args: argparse.Namespace) -> int:
    """Run an importable function in the processes that Detectron2's flags ask for.

    Returns as ``run_tool``.
    """
    work = (function, arguments, args.debug)
    try:
        return run_tool(partial(run_processes, _run_and_exit, work, args), debug=args.debug)
    except SystemExit as end:
        # A text as the code means failure, None success.
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _run_and_exit(function: Callable[..., object], arguments: tuple, debug: bool) -> None:
    """Be one process of a run: it reports its errors itself, and its exit code tells the rest."""
    code = run_tool(partial(function, *arguments), debug=debug)
    if code:
        sys.exit(code)


def _train_or_evaluate(trainer: type[DefaultTrainer], args: argparse.Namespace) -> object:
    cfg = set_up(args)
    if args.eval_only:
        return trainer.evaluate_weights(cfg, resume=args.resume)
    session = trainer(cfg)
    session.resume_or_load(resume=args.resume)
    results = session.train()
    logging.getLogger(__name__).info(
        "finished: %s holds results.json, metrics.json, log.txt and the checkpoint "
        "model_final.pth; look at the curves by tensorboard --logdir %s, or by "
        "python tools/plot_metrics.py %s",
        *(cfg.OUTPUT_DIR,) * 3,
    )
    return results


def run_tool(action: Callable[[], object], *, debug: bool = False) -> int:
    """Run a command and turn a user's error into one sentence on stderr.

    ``debug`` raises the error instead. Exit code: 0, 1 after a user's error, 128 + the number of a
    signal that ended the command.
    """
    try:
        with raising_sigterm():
            action()
    except Exception as error:
        if debug or not is_users(error):
            raise
        sys.stderr.write(f"error: {sentence(error)}\n")
        return 1
    except KeyboardInterrupt as stop:
        signum = getattr(stop, "signum", signal.SIGINT)
        sys.stderr.write(f"stopped by {signal.Signals(signum).name} {stop}\n")
        return 128 + signum
    return 0
