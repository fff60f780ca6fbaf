"""Where the recipes lie: in a checkout in configs/, in a wheel inside the package."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe_folder() -> Path:
    """Find the folder of the recipes, of the wheel, else of the checkout."""
    shipped = _PACKAGE / "model_zoo" / "configs"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "configs"


def get_config_file(config_path: str) -> str:
    """Find a recipe, as ``detectron2.model_zoo.get_config_file`` does Detectron2's.

    The name is below ``configs``, such as "coco_ov/fvit_clipself_patches_eva02_b16.yaml"; a
    FileNotFoundError says that there is none.
    """
    path = recipe_folder() / config_path
    if not path.is_file():
        raise FileNotFoundError(
            f"{config_path} is no recipe; clipself_d2.model_zoo.list_recipes() names them"
        )
    return str(path)


def find_config(config_file: str) -> str:
    """Find what --config-file names: a file, or a recipe that came with the package.

    The path of a recipe may begin with ``configs/``; where there is neither it is returned as it
    is.
    """
    recipe = recipe_folder() / config_file.removeprefix("configs/")
    is_recipe = config_file and not Path(config_file).exists() and recipe.is_file()
    return str(recipe) if is_recipe else config_file
