"""A detector with its weights, from a yaml config or a LazyConfig, for the predictor."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import detectron2.data.transforms as T
from detectron2.config import CfgNode, get_cfg, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from clipself_d2.config import add_clipself_config
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.lazy import build_lazy_model, embedding_calls, load_lazy_config
from clipself_d2.engine.trainer import Trainer
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.runs.checkpointer import StrictCheckpointer, self_contained
from clipself_d2_cli.flags import user_path

Config: TypeAlias = CfgNode | DictConfig

# Zero-shot detection: CLIP and the proposal network bring weights of their own.
_COMPLETE_WITHOUT_WEIGHTS = ("OfflineProposalRCNN",)


@dataclass(frozen=True)
class DetectorSource:
    """What the predictor needs of a detector.

    Attributes:
        model: The detector in eval mode, with its weights.
        cfg: Keys of the CLIP, the vocabulary and the image format; of a LazyConfig the same,
            taken from its parts.
        augmentation: Resizing of test images.
    """

    model: nn.Module
    cfg: CfgNode
    augmentation: T.Augmentation


def read_detector_config(config_file: str | Path, overrides: Sequence[object]) -> Config:
    """Read a config by the kind of its file: yaml, or a LazyConfig, which ends in .py.

    Overrides alternate keys and values for yaml and are ``key=value`` for a LazyConfig. The config
    is not frozen.
    """
    path = user_path(str(config_file))
    if path.suffix == ".py":
        texts = [str(text) for text in overrides]
        return load_lazy_config(str(path), texts, needed=("model", "dataloader"))
    return load_config(str(path), list(overrides))  # type: ignore[arg-type]


def build_detector(
    config: str | Path | Config, weights: str | Path | None, overrides: Sequence[object]
) -> DetectorSource:
    """Build a detector and load its weights.

    Args:
        config: A file as for ``read_detector_config``, or a config.
        weights: Checkpoint; None takes MODEL.WEIGHTS, of a LazyConfig ``train.init_checkpoint``.
        overrides: As for ``read_detector_config``.
    """
    if isinstance(config, str | Path):
        config = read_detector_config(config, overrides)
    elif isinstance(config, DictConfig) and overrides:
        raise ValueError(
            "overrides go with the file of a LazyConfig; change the keys of the config itself"
        )
    elif isinstance(config, CfgNode):
        config = config.clone()
        config.defrost()
        config.merge_from_list(list(overrides))
    given = None if weights is None else str(weights)
    if isinstance(config, DictConfig):
        return _from_lazy(config, given)
    return _from_yaml(config, given)


def _from_yaml(cfg: CfgNode, weights: str | None) -> DetectorSource:
    weights = cfg.MODEL.WEIGHTS if weights is None else weights
    if weights or cfg.MODEL.META_ARCHITECTURE not in _COMPLETE_WITHOUT_WEIGHTS:
        weights = find_checkpoint("MODEL.WEIGHTS", weights)
    cfg.MODEL.WEIGHTS = weights
    model: nn.Module = Trainer.build_model(self_contained(cfg)).eval()
    StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return DetectorSource(model, cfg, resize)


def _from_lazy(config: DictConfig, weights: str | None) -> DetectorSource:
    key = "train.init_checkpoint"
    weights = find_checkpoint(key, weights or OmegaConf.select(config, key, default="") or "")
    mapper = OmegaConf.select(config, "dataloader.test.mapper", default=None)
    if mapper is None or "augmentations" not in mapper:
        raise ValueError(
            "the LazyConfig has no dataloader.test.mapper.augmentations to resize pictures with; "
            "add them, such as [L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)]"
        )
    model = build_lazy_model(config).eval()
    cfg = _words_of(config, model)
    cfg.MODEL.WEIGHTS = weights
    cfg.INPUT.FORMAT = getattr(model, "input_format", None) or mapper.get("image_format", "RGB")
    StrictCheckpointer(model.to(cfg.MODEL.DEVICE)).load(weights)
    return DetectorSource(model, cfg, T.AugmentationList(instantiate(mapper.augmentations)))


def _words_of(config: DictConfig, model: nn.Module) -> CfgNode:
    """Keys of the CLIP and the vocabulary, as the classifier of a lazy model has them."""
    has_text = any(isinstance(module, TextClassifier) for module in model.modules())
    options = next(embedding_calls(config.model), None)
    if not has_text or options is None:
        raise ValueError(
            f"{type(model).__name__} of this LazyConfig has no text classifier made from "
            "dataset_embeddings, so that it knows no words; take a config with text classes, such "
            "as configs/plug_in/fcos_words.py"
        )
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.MODEL.CLIP.NAME = options.clip
    cfg.MODEL.CLIP.PRETRAINED = options.get("weights") or ""
    cfg.MODEL.VOCABULARY.DATASET = options.name
    cfg.MODEL.VOCABULARY.TEMPLATES = options.get("templates", "vild")
    cfg.MODEL.VOCABULARY.CACHE_DIR = options.get("cache_dir") or ""
    cfg.MODEL.DEVICE = OmegaConf.select(config, "train.device", default="cpu")
    return cfg


def find_checkpoint(key: str, weights: str) -> str:
    """Check that the checkpoint ``weights`` of a config's ``key`` is there.

    Returns the file with the home folder expanded, or an address such as detectron2:// as it is.
    """
    if not weights:
        raise ValueError(f"{key} is empty; give the model's checkpoint")
    if "://" in weights:
        return weights
    path = user_path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"{key} {path} does not exist; give a checkpoint")
    return str(path)
