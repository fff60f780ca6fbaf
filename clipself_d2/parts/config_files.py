"""yaml configs read as data: no tag of theirs runs code.

Detectron2 reads a config whose tags plain yaml does not know with ``yaml.unsafe_load``, which calls
whatever the file names. The tags that its model zoo and this project's recipes hold are known here:
arithmetic, tuples, and the place of a config of the model zoo.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.model_zoo import get_config_file
from fvcore.common.config import BASE_KEY

from clipself_d2.parts.arithmetic import evaluate

_PYTHON = "tag:yaml.org,2002:python/"


class _DataLoader(yaml.SafeLoader):
    """Knows the tags of configs that hold data alone."""


def _applying(function: Callable[[str], object]) -> Callable[[yaml.SafeLoader, yaml.Node], object]:
    """Read a tag of a function that is given one text."""

    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> object:
        given = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
        try:
            if len(given) != 1 or not isinstance(given[0], str):
                raise ValueError("expected one text in a list behind the tag")
            return function(given[0])
        except (ValueError, RuntimeError) as error:
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error

    return construct


_DataLoader.add_constructor(f"{_PYTHON}object/apply:eval", _applying(evaluate))
_DataLoader.add_constructor(
    f"{_PYTHON}object/apply:detectron2.model_zoo.get_config_file", _applying(get_config_file)
)
# A tuple as a list: merging makes it the kind of sequence that the key holds.
_DataLoader.add_constructor(
    f"{_PYTHON}tuple", lambda loader, node: list(loader.construct_sequence(node, deep=True))
)


@lru_cache(256)
def _parse(text: str) -> Any:
    """Content of a file; a base is read again and again, and yaml is slow."""
    return yaml.load(text, Loader=_DataLoader)


class _DataNode(CfgNode):
    """Detectron2's config node, whose files are read without tags."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        with cls._open_cfg(filename) as stream:
            try:
                content = deepcopy(_parse(stream.read()))
            except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"{filename} is no yaml of plain data: {_fault(error)}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{filename} holds {type(content).__name__}, expected keys and values")
        bases, merged = content.pop(BASE_KEY, []), dict[str, Any]()
        for base in [bases] if isinstance(bases, str) else bases:
            place = os.path.expanduser(base)
            if not place.startswith(("http://", "https://")):
                place = os.path.join(os.path.dirname(filename), place)
            _update(merged, cls.load_yaml_with_base(place))
        return _update(merged, content)


def _update(content: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Overwrite keys, those of nested ones each by itself."""
    for key, value in new.items():
        if isinstance(value, dict) and key in content:
            assert isinstance(content[key], dict), f"the _BASE_ has a value where {key} holds keys"
            _update(content[key], value)
        else:
            content[key] = value
    return content


def _fault(error: Exception) -> str:
    """What is wrong and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    place = "" if mark is None else f" in line {mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return f"{' '.join(problem.split())}{place}"


def merge_config_file(cfg: CfgNode, config_file: str | Path) -> None:
    """Merge, in place, a yaml file and its ``_BASE_``, as Detectron2 does, without running code.

    An AssertionError says that there is no such file, a KeyError that a key is unknown, a
    ValueError that the file is no yaml, holds a tag that could run code, or a value of another
    type.
    """
    merged = _DataNode(cfg)
    merged.merge_from_file(str(config_file), allow_unsafe=False)
    # Nodes go back to the type that others merge with.
    plain = CfgNode(merged)
    cfg.clear()
    cfg.update(plain)


def read_config_file(config_file: str | Path) -> dict[str, Any]:
    """Read a yaml file and what its ``_BASE_`` names, without defaults, as nested keys.

    An OSError or ValueError says that there is no such file, or no yaml, or a tag that could run
    code.
    """
    return _DataNode.load_yaml_with_base(str(config_file))
