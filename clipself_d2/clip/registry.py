"""Names and tags of the models this project adds to open_clip's."""

import difflib
import importlib.util
import json
import re
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants as hub_constants
from open_clip.pretrained import download_pretrained_from_hf

_FOLDER = Path(__file__).parent
CONFIG_FOLDER = _FOLDER / "model_configs"
_ZOO = _FOLDER.parent / "model_zoo" / "checkpoints"
# Weights of the project's own models by (name, tag): whole CLIPs, and image towers alone.
PROJECT_WEIGHTS = {
    ("ViT-Ti-8-emoji", "emoji"): _FOLDER / "pretrained" / "ViT-Ti-8-emoji.safetensors"
}
PROJECT_TOWERS = {("ViT-Ti-8-emoji", "emoji_clipself"): _ZOO / "emoji" / "clipself_proposals.pth"}
HUB_PREFIX = "hf-hub:"
# A folder that is laid out as a model on the hub.
FOLDER_PREFIX = "local-dir:"
# org/name with letters, digits, "-", "_" and "."; what else would be a path or a typing error.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_CONFIG = "open_clip_config.json"
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def project_models() -> tuple[str, ...]:
    """List the models this project adds to open_clip's, sorted."""
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
    """Raise unless open_clip, the hub (``hf-hub:org/name``) or ``local-dir:FOLDER`` has a model."""
    if is_published(name):
        hub_config(name)
    elif open_clip.get_model_config(name) is None:
        near = _near(name, open_clip.list_models())
        raise ValueError(f"{name!r} is no model of open_clip; near: {near}")


def needs_transformers(name: str) -> bool:
    """Tell whether a known model reads words by Hugging Face's transformers."""
    text = open_clip.get_model_config(name)["text_cfg"]
    return "hf_tokenizer_name" in text or "hf_model_name" in text


def check_transformers(name: str) -> None:
    """Raise a ValueError where a known model needs transformers, which is not installed."""
    if needs_transformers(name) and importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f'the text tower of {name} needs transformers; run pip install -e ".[transformers]"'
        )


def embed_dim(name: str) -> int:
    """Look up the width D of a model's joint embedding."""
    check_name(name)
    return int(open_clip.get_model_config(name)["embed_dim"])


def native_image_size(name: str) -> int:
    """Look up the side of a model's native input, px; the model is not built."""
    check_name(name)
    # 224 is open_clip's own default.
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    return int(size if isinstance(size, int) else size[0])


def pretrained_tags(name: str) -> list[str]:
    """List tags of a model's whole CLIPs, this project's first; of a hub id the id itself."""
    if is_published(name):
        return [name]
    tags = [tag for model, tag in PROJECT_WEIGHTS if model == name]
    return tags + list(open_clip.list_pretrained_tags_by_model(name))


def find_weights(name: str, weights: str) -> tuple[str | None, Path | None]:
    """Tell what a weights string of a model means.

    It is a tag of this project or of open_clip, an id ``hf-hub:org/name``, a folder
    ``local-dir:FOLDER``, or a file. Gives the tag or id and None, to be had by ``fetch_weights``;
    or None and a file. A ValueError says that it is none of these, or that the tag's activation is
    not the model's.
    """
    if is_published(weights):
        _check_activation(name, weights, hub_config(weights)["model_cfg"])
        return weights, None
    own = PROJECT_WEIGHTS | PROJECT_TOWERS
    if (name, weights) in own:
        return None, own[name, weights]
    settings = open_clip.get_pretrained_cfg(name, weights)
    if settings:
        _check_activation(name, weights, settings)
        return weights, None
    path = Path(weights).expanduser()
    if path.is_file():
        return None, path
    tags = pretrained_tags(name) + [tag for model, tag in PROJECT_TOWERS if model == name]
    raise ValueError(
        f"{weights!r} is neither a file nor pretrained weights of {name}; "
        f"tags of {name}: {', '.join(tags) or 'none'}; near: {_near(weights, tags)}"
    )


def fetch_weights(name: str, tag: str) -> tuple[dict[str, Any], str]:
    """Download weights of ``find_weights``, or take them from the cache.

    Gives their settings, with "mean" and "std" where they are known, and the file; or raises a
    FileNotFoundError.
    """
    try:
        if not is_published(tag):
            settings = open_clip.get_pretrained_cfg(name, tag)
            with _no_retries():
                return settings, open_clip.download_pretrained(settings)
        settings = dict(hub_config(tag).get("preprocess_cfg", {}))
        if tag.startswith(FOLDER_PREFIX):
            return settings, str(_folder_file(tag, HUB_WEIGHTS))
        with _no_retries():
            return settings, download_pretrained_from_hf(tag.removeprefix(HUB_PREFIX))
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"the weights {tag!r} of {name} are not in the cache and cannot be downloaded "
            f"({_first_line(error).partition('. ')[0]}); without network, copy the file "
            "here and give its path as the weights"
        ) from error


def hub_config(hub_id: str) -> dict[str, Any]:
    """Read ``open_clip_config.json`` of ``hf-hub:org/name`` or ``local-dir:FOLDER``.

    A ValueError says that the id has not that form, or that it holds no CLIP of open_clip's format;
    a FileNotFoundError that the hub cannot be reached or knows no such model.
    """
    if hub_id.startswith(FOLDER_PREFIX):
        return _model_config(hub_id, _folder_file(hub_id, (HUB_CONFIG,)))
    repository = hub_id.removeprefix(HUB_PREFIX)
    if not _HUB_ID.fullmatch(repository):
        raise ValueError(f"{hub_id!r} is no id of the Hugging Face hub; write hf-hub:org/name")
    try:
        with _no_retries():
            path = download_pretrained_from_hf(repository, filename=HUB_CONFIG)
    except OSError as error:
        raise FileNotFoundError(
            f"{hub_id} is not in the cache and the hub does not give its {HUB_CONFIG} "
            f"({_first_line(error)}); check the id and the network, or give a file of weights"
        ) from error
    return _model_config(hub_id, Path(path))


def is_published(name: str) -> bool:
    """Tell whether a name begins with ``hf-hub:`` or ``local-dir:``, which has weights."""
    return name.startswith((HUB_PREFIX, FOLDER_PREFIX))


def _folder_file(name: str, files: tuple[str, ...]) -> Path:
    folder = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(
        f"{folder} holds no {' or '.join(files)}, as a model on the Hugging Face hub does; "
        "clipself_d2.clip.save_pretrained writes such folders"
    )


def _model_config(name: str, path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "model_cfg" not in config:
        raise ValueError(f"{name} is no CLIP of open_clip: its {HUB_CONFIG} has no model_cfg")
    return config


def _check_activation(name: str, tag: str, settings: dict[str, Any]) -> None:
    config = open_clip.get_model_config(name)
    quick = bool(settings.get("quick_gelu", False))
    if quick == bool(config.get("quick_gelu", False)):
        return
    other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
    raise ValueError(
        f"the weights {tag!r} were trained with {'QuickGELU' if quick else 'GELU'} but {name} "
        f"has the other activation, so features would be silently wrong; use {other}"
    )


@contextmanager
def _no_retries() -> Iterator[None]:
    """Look into the cache alone where the hub's name leads nowhere; it would retry for a minute."""
    host, known = urlsplit(hub_constants.ENDPOINT).hostname, hub_constants.HF_HUB_OFFLINE
    try:
        # Behind a proxy names of the world need not be known here.
        if host and not urllib.request.getproxies():
            socket.getaddrinfo(host, None)
    except OSError:
        hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = known


def _near(word: str, known: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(word, known, n=5, cutoff=0.4)) or "none"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
