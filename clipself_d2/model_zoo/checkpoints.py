"""Trained weights of recipes that are small enough to come with the package."""

from pathlib import Path, PurePosixPath

import torch
from detectron2.data import MetadataCatalog

from clipself_d2.clip.weights.form import FORM_KEY
from clipself_d2.clip.weights.reading import read_weights_file
from clipself_d2.engine.cli import load_config
from clipself_d2.parts.recipe_files import get_config_file
from clipself_d2.parts.shipped_weights import PREFIX
from clipself_d2.vocabulary.whole_file import whole_file


def get_checkpoint_url(config_path: str) -> str:
    """Name the trained weights of a recipe, as ``detectron2.model_zoo.get_checkpoint_url`` does.

    Args:
        config_path: As of ``get_config``.

    Returns:
        A MODEL.WEIGHTS; that there is such a file is seen where it is read.
    """
    return PREFIX + PurePosixPath(config_path).with_suffix(".pth").as_posix()


def pack_checkpoint(source: str | Path, output: str | Path, *, config_path: str) -> list[str]:
    """Write a checkpoint of a run as one to give away: its weights in half precision.

    Recipe, class names and the dense form go with them; the run, its config and the optimiser stay.
    The same source gives the same bytes.

    Args:
        source: ``model_final.pth`` of a run.
        output: File to write.
        config_path: The yaml recipe that the run had, as of ``get_config``.

    Returns:
        The names of the classes that it was scored on.
    """
    content = read_weights_file(source)
    dataset = load_config(get_config_file(config_path), []).DATASETS.TEST[0]
    metadata = MetadataCatalog.get(dataset)
    names = [*metadata.get("thing_classes", ()), *metadata.get("stuff_classes", ())]
    names = list(dict.fromkeys(names))
    model = {
        name: value.half() if value.is_floating_point() else value
        for name, value in content["model"].items()
    }
    packed = {"model": model, FORM_KEY: content[FORM_KEY], "recipe": config_path, "classes": names}
    with whole_file(output, "wb") as file:
        torch.save(packed, file)
    return names
