"""Trained weights of recipes that are small enough to come with the package."""

from pathlib import Path, PurePosixPath

import torch
from detectron2.data import MetadataCatalog

from clipself_d2.clip.weights.form import FORM_KEY
from clipself_d2.clip.weights.reading import read_weights_file
from clipself_d2.engine.cli import load_config
from clipself_d2.parts.recipe_files import get_config_file
from clipself_d2.parts.shipped_weights import PREFIX, TOWER_KEY, shipped_tower
from clipself_d2.vocabulary.whole_file import whole_file


def get_checkpoint_url(config_path: str) -> str:
    """Name the trained weights of a recipe, as ``detectron2.model_zoo.get_checkpoint_url`` does.

    Args:
        config_path: As of ``get_config``.

    Returns:
        A MODEL.WEIGHTS; that there is such a file is seen where it is read.
    """
    return PREFIX + PurePosixPath(config_path).with_suffix(".pth").as_posix()


def pack_checkpoint(
    source: str | Path, output: str | Path, *, config_path: str, tower: str = ""
) -> list[str]:
    """Write a checkpoint of a run as one to give away.

    Recipe, class names and the dense form go with the weights; the run, its config and the
    optimiser stay. The same source gives the same bytes.

    Args:
        source: ``model_final.pth`` of a run.
        output: File to write.
        config_path: The yaml recipe that the run had, as of ``get_config``.
        tower: Address of a student that comes with the package and is the model's frozen image
            tower, which then is left out and read from there; "" writes the whole model.

    Returns:
        The names of the classes that it was scored on.

    Raises:
        ValueError: If the model's image tower is another one.
    """
    content = read_weights_file(source)
    dataset = load_config(get_config_file(config_path), []).DATASETS.TEST[0]
    metadata = MetadataCatalog.get(dataset)
    names = [*metadata.get("thing_classes", ()), *metadata.get("stuff_classes", ())]
    names = list(dict.fromkeys(names))
    model, forms = dict(content["model"]), content[FORM_KEY]
    packed = {FORM_KEY: forms, "recipe": config_path, "classes": names}
    if tower:
        for name, value in shipped_tower(tower, forms).items():
            if not torch.equal(model.pop(name), value):
                raise ValueError(f"the image tower of {source} is not {tower}; pack it whole")
        packed[TOWER_KEY] = tower
    with whole_file(output, "wb") as file:
        torch.save({"model": model, **packed}, file)
    return names
