"""The page of yaml keys, docs/config.md, made of the comments in ``clipself_d2/config.py``."""

import ast
import inspect
from dataclasses import dataclass

from clipself_d2 import config

_HEADER = """# Keys

Made by `python tools/list_keys.py --output docs/config.md` from the comments of
`clipself_d2/config.py`; do not edit.

These are the keys that `import clipself_d2` adds to
[Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html), one table a
method. yaml files and KEY VALUE pairs at the end of a command line set them. In LazyConfig the same
words are parameters of the constructors.
"""


@dataclass(frozen=True)
class Key:
    """One row of the page: dotted name, default as Python writes it, and the comment above it."""

    name: str
    default: str
    meaning: str


def read_groups() -> dict[str, list[Key]]:
    """Read the groups of keys, each a function of the config whose docstring is its title."""
    lines = inspect.getsource(config).splitlines()
    groups: dict[str, list[Key]] = {}
    for function in ast.parse("\n".join(lines)).body:
        if not isinstance(function, ast.FunctionDef) or not function.name.startswith("_add_"):
            continue
        title = (ast.get_docstring(function) or function.name).removesuffix(".")
        keys = groups.setdefault(title, [])
        for node in function.body:
            if not isinstance(node, ast.Assign) or ast.unparse(node.value) == "CN()":
                continue
            name = ast.unparse(node.targets[0]).removeprefix("cfg.")
            meaning = _comment_above(lines, node.lineno)
            if not meaning:
                raise ValueError(f"{name} has no comment in {config.__file__}")
            keys.append(Key(name, ast.unparse(node.value), meaning))
    return groups


def render() -> str:
    """Write the page: Markdown with a table for each group."""
    parts = [_HEADER]
    for title, keys in read_groups().items():
        rows = [f"| `{key.name}` | `{key.default}` | {key.meaning} |" for key in keys]
        parts.append("\n".join(["", f"## {title}", "", "| key | default | meaning |"]))
        parts.append("\n".join(["| --- | --- | --- |", *rows]))
    return "\n".join(parts) + "\n"


def _comment_above(lines: list[str], number: int) -> str:
    """Join the comment that ends on the line before a 1-based line."""
    found: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.lstrip().startswith("#"):
            break
        found.insert(0, line.strip().removeprefix("#").strip())
    return " ".join(found).replace("|", "/")
