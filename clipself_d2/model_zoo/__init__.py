"""Recipes by name, as of ``detectron2.model_zoo``, with or without the repository."""

from clipself_d2.model_zoo.checkpoints import get_checkpoint_url
from clipself_d2.model_zoo.recipes import get, get_config, list_recipes
from clipself_d2.parts.recipe_files import get_config_file

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "list_recipes"]
