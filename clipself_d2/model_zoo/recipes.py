"""A recipe as a config, or as the model that it describes."""

from collections.abc import Sequence

from detectron2.config import CfgNode, LazyConfig, instantiate
from omegaconf import DictConfig
from torch import nn

from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer
from clipself_d2.model_zoo.checkpoints import get_checkpoint_url
from clipself_d2.parts.recipe_files import get_config_file, recipe_folder
from clipself_d2.runs.checkpointer import StrictCheckpointer, self_contained


def list_recipes() -> list[str]:
    """List the recipes.

    Returns:
        Names for ``get_config``, sorted.
    """
    folder = recipe_folder()
    files = [path for kind in ("*.yaml", "*.py") for path in folder.rglob(kind)]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def get_config(config_path: str, overrides: Sequence[str] = ()) -> CfgNode | DictConfig:
    """Read a recipe.

    Args:
        config_path: Name below ``configs``, such as "coco_ov/fvit_clipself_patches_eva02_b16.yaml".
        overrides: Alternating keys and values; of a .py recipe key=value.

    Returns:
        The config, not frozen.
    """
    file = get_config_file(config_path)
    if file.endswith(".py"):
        return LazyConfig.apply_overrides(LazyConfig.load(file), list(overrides))
    return load_config(file, list(overrides))


def get(config_path: str, overrides: Sequence[str] = (), *, trained: bool = False) -> nn.Module:
    """Build the model of a recipe.

    Args:
        config_path: As of ``get_config``.
        overrides: As of ``get_config``; MODEL.WEIGHTS names the checkpoint of a yaml recipe,
            without it the heads are random.
        trained: Whether to take the weights of the recipe that come with the package.

    Returns:
        The model in eval mode.

    Raises:
        FileNotFoundError: If there are no such weights.
    """
    if trained:
        overrides = [*overrides, "MODEL.WEIGHTS", get_checkpoint_url(config_path)]
    cfg = get_config(config_path, overrides)
    if isinstance(cfg, DictConfig):
        return instantiate(cfg.model).eval()
    model = Trainer.build_model(self_contained(cfg))
    if cfg.MODEL.WEIGHTS:
        StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.eval()
