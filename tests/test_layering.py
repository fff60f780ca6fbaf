"""Imports go down only.

Order: tools, configs, datasets -> clipself_d2 (registration) -> apps -> engine -> command_line ->
{detection, distillation, referring, segmentation} -> {backbones, data, evaluation, runs} ->
parts -> vocabulary -> {clip, layers}; the members of one brace never import one another.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "clipself_d2"
SCRIPT_FOLDERS = ("tools", "configs", "datasets")

# A part imports parts of a smaller level only, or itself.
LEVEL = {
    "clip": 0,
    "layers": 0,
    "vocabulary": 1,
    "parts": 2,
    "runs": 3,
    "config": 2,
    "backbones": 3,
    "data": 3,
    "evaluation": 3,
    "detection": 4,
    "distillation": 4,
    "referring": 4,
    "segmentation": 4,
    "command_line": 5,
    "engine": 6,
    "apps": 7,
    "model_zoo": 7,
    "doctor": 7,
    "__init__": 8,
    "scripts": 9,
}
FOREIGN_RULES = {
    # Imported top-level module: the only parts that may import it.
    "open_clip": {"clip"},
    "timm": {"clip"},
    "detectron2": set(LEVEL) - {"clip", "layers", "vocabulary", "doctor"},
    "fvcore": set(LEVEL) - {"clip", "layers", "vocabulary", "doctor"},
}
PATH_METHODS = {"append", "extend", "insert", "remove", "pop", "clear"}


def sources(root: Path) -> Iterator[Path]:
    """Every Python file that the rules hold for; tests may import what they test."""
    for folder in (PACKAGE, *SCRIPT_FOLDERS):
        yield from sorted((root / folder).rglob("*.py"))


def part_of(path: Path) -> str:
    """The part a file belongs to, such as clip, config, __init__ or scripts."""
    if path.parts[0] != PACKAGE:
        return "scripts"
    return path.stem if len(path.parts) == 2 else path.parts[1]


def imported_modules(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import, those inside functions included."""
    folder = list(path.parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def path_edits(tree: ast.AST) -> Iterator[int]:
    """Lines that change where Python looks for modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            owner, _, method = called.rpartition(".")
            if (owner == "sys.path" and method in PATH_METHODS) or called == "site.addsitedir":
                yield node.lineno
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(target).startswith("sys.path") for target in targets):
                yield node.lineno


def violations(root: Path) -> list[str]:
    """Everything under ``root`` that breaks a rule, one sentence each."""
    found = []
    for file in sources(root):
        path = file.relative_to(root)
        part = part_of(path)
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
        if part not in LEVEL:
            found.append(f"{path}: the part {part} has no level; add it to LEVEL")
            continue
        for line, module in imported_modules(tree, path):
            names = module.split(".")
            if part not in FOREIGN_RULES.get(names[0], {part}):
                found.append(f"{path}:{line}: {part} must not import {names[0]}")
            if names[0] != PACKAGE:
                continue
            # ``import clipself_d2`` and names of its __init__ stand for the registration.
            target = names[1] if len(names) > 1 and names[1] in LEVEL else "__init__"
            if target == "__init__" and names[1:] == ["__version__"]:
                continue
            if target != part and LEVEL[target] >= LEVEL[part]:
                found.append(f"{path}:{line}: {part} must not import {target}")
        if "sys" in text or "site" in text:
            found += [f"{path}:{line}: edits sys.path" for line in path_edits(tree)]
    return found


def test_imports_go_down_only() -> None:
    assert len(list(sources(ROOT))) > 10, "the rules are checked on too few files"
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        (
            "clipself_d2/layers/planted.py",
            "import detectron2.layers",
            "layers must not import",
        ),
        ("clipself_d2/clip/planted.py", "from fvcore.common import registry", "not import fvcore"),
        (
            "clipself_d2/detection/planted.py",
            "import open_clip",
            "must not import open_clip",
        ),
        (
            "tools/planted.py",
            "from timm.layers import trunc_normal_",
            "must not import timm",
        ),
        (
            "clipself_d2/data/planted.py",
            "from clipself_d2 import evaluation",
            "not import evaluation",
        ),
        ("clipself_d2/data/planted.py", "from ..detection.x import y", "not import detection"),
        ("clipself_d2/layers/planted.py", "from clipself_d2.clip import x", "not import clip"),
        (
            "clipself_d2/distillation/a/planted.py",
            "from ... import engine",
            "must not import engine",
        ),
        (
            "clipself_d2/clip/planted.py",
            "def f():\n    from clipself_d2.vocabulary import Vocabulary",
            "planted.py:2: clip must not import vocabulary",
        ),
        ("clipself_d2/engine/planted.py", "import clipself_d2", "engine must not import __init__"),
        ("clipself_d2/utils/planted.py", "x = 1", "utils has no level"),
        ("tools/planted.py", "import sys\nsys.path.insert(0, '.')", "planted.py:2: edits sys.path"),
        ("configs/lazy/planted.py", "import sys\nsys.path += ['.']", "edits sys.path"),
    ],
)
def test_planted_violation_is_found(path: str, source: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    found = violations(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("clipself_d2/clip/fine.py", "import open_clip\nfrom timm.models import eva\nimport torch"),
        ("clipself_d2/vocabulary/fine.py", "from clipself_d2.layers.x import y\nfrom . import z"),
        ("clipself_d2/engine/fine.py", "from clipself_d2.config import x\nfrom ..data import y"),
        ("clipself_d2/engine/fine.py", "from clipself_d2 import __version__"),
        ("tools/fine.py", "import clipself_d2\nfrom detectron2.config import get_cfg"),
        ("configs/fine.py", "import sys\nprint(sys.path)"),
    ],
)
def test_allowed_import_is_not_a_violation(path: str, source: str, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []
