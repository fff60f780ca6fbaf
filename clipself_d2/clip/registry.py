"""Names and tags of the models this project adds to open_clip's."""

import difflib
import json
import tempfile
from pathlib import Path

import open_clip

_FOLDER = Path(__file__).parent
CONFIG_FOLDER = _FOLDER / "model_configs"
# Weights of the project's own models by (name, tag); whole CLIPs in open_clip's layout.
PROJECT_WEIGHTS = {
    ("ViT-Ti-8-emoji", "emoji"): _FOLDER / "weights" / "ViT-Ti-8-emoji.safetensors",
}


def project_models() -> tuple[str, ...]:
    """List the models this project adds to open_clip's.

    Returns:
        Names of the files in ``model_configs``, sorted.
    """
    return tuple(sorted(path.stem for path in CONFIG_FOLDER.glob("*.json")))


def register_project_models() -> None:
    """Add the project's model configs to open_clip's registry.

    open_clip reads a config from a file and takes its tokenizer's merges from an absolute path, so
    the files are resolved into a folder that lives only for the call.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in project_models():
            config = json.loads((CONFIG_FOLDER / f"{name}.json").read_text())
            tokenizer = config["text_cfg"].get("tokenizer_kwargs", {})
            if "bpe_path" in tokenizer:
                tokenizer["bpe_path"] = str(CONFIG_FOLDER / tokenizer["bpe_path"])
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(config))
            open_clip.add_model_config(path)


def check_name(name: str) -> None:
    """Raise unless a model is known.

    Args:
        name: Model name as open_clip knows it.

    Raises:
        ValueError: If there is no such model.
    """
    if open_clip.get_model_config(name) is None:
        near = _near(name, open_clip.list_models())
        raise ValueError(f"MODEL.CLIP.NAME {name!r} is no model of open_clip; near: {near}")


def find_weights(name: str, weights: str) -> tuple[str | None, Path | None]:
    """Tell what a weights string of a model means.

    Args:
        name: Model name.
        weights: A tag of this project or of open_clip, or a file.

    Returns:
        open_clip's tag and None, or None and a file.

    Raises:
        ValueError: If it is neither, or if the tag's activation is not the model's.
    """
    if (name, weights) in PROJECT_WEIGHTS:
        return None, PROJECT_WEIGHTS[name, weights]
    settings = open_clip.get_pretrained_cfg(name, weights)
    if settings:
        _check_activation(name, weights, settings)
        return weights, None
    path = Path(weights).expanduser()
    if path.is_file():
        return None, path
    tags = [tag for model, tag in PROJECT_WEIGHTS if model == name]
    tags += open_clip.list_pretrained_tags_by_model(name)
    raise ValueError(
        f"{weights!r} is neither a file nor pretrained weights of {name}; "
        f"tags of {name}: {', '.join(tags) or 'none'}; near: {_near(weights, tags)}"
    )


def _check_activation(name: str, tag: str, settings: dict[str, object]) -> None:
    config = open_clip.get_model_config(name)
    quick = bool(settings.get("quick_gelu", False))
    if quick == bool(config.get("quick_gelu", False)):
        return
    other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
    raise ValueError(
        f"the weights {tag!r} were trained with {'QuickGELU' if quick else 'GELU'} but {name} "
        f"has the other activation, so features would be silently wrong; use {other}"
    )


def _near(word: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(word, known, n=5, cutoff=0.4)) or "none"
