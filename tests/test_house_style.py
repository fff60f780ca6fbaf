"""Rules of the house that no linter knows; each test lists every violation at once."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "clipself_d2"
CODE_FOLDERS = (PACKAGE, "clipself_d2_cli", "tools", "configs", "datasets", "tests")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
# Commands talk to a terminal; everything else logs.
PRINTING = ("tools/", "datasets/", "clipself_d2/doctor.py")
# Data tables and recipes are exempt from size, not from review.
SIZE_EXEMPT = ("configs/", "clipself_d2/vocabulary/templates.py")
TEXT_SUFFIXES = {".py", ".sh", ".toml", ".yaml", ".yml", ".txt", ".cfg"}


def python_files(root: Path) -> Iterator[Path]:
    """Python files of the project, relative to ``root``."""
    for folder in CODE_FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            yield file.relative_to(root)
    for file in sorted(root.glob("*.py")):
        yield file.relative_to(root)


def text_files(root: Path) -> Iterator[Path]:
    """Files of the project that people type, relative to ``root``."""
    for folder in CODE_FOLDERS:
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in TEXT_SUFFIXES and "golden" not in file.parts:
                yield file.relative_to(root)
    for file in sorted(root.glob("*")):
        if file.suffix in TEXT_SUFFIXES:
            yield file.relative_to(root)


@functools.cache
def parse(root: Path, path: Path) -> ast.Module:
    return ast.parse((root / path).read_text(encoding="utf-8"), filename=str(path))


def oversized(root: Path) -> list[str]:
    found = []
    for path in python_files(root):
        if path.as_posix().startswith(SIZE_EXEMPT):
            continue
        lines = len((root / path).read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            found.append(f"{path}: {lines} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(parse(root, path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(
                        f"{path}:{node.lineno}: {node.name} has {length} lines, "
                        f"at most {MAX_FUNCTION_LINES}"
                    )
    return found


def prints(root: Path) -> list[str]:
    found = []
    for path in python_files(root):
        if path.as_posix().startswith(PRINTING):
            continue
        for node in ast.walk(parse(root, path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("print", "pprint")
            ):
                found.append(f"{path}:{node.lineno}: {node.func.id}; log it instead")
    return found


def mute_assertions(root: Path) -> list[str]:
    """Assertions without a message outside the tests, where pytest explains them."""
    found = []
    for path in python_files(root):
        if path.parts[0] == "tests":
            continue
        for node in ast.walk(parse(root, path)):
            if isinstance(node, ast.Assert) and node.msg is None:
                found.append(f"{path}:{node.lineno}: assert without a message")
    return found


def not_ascii(root: Path) -> list[str]:
    found = []
    for path in text_files(root):
        lines = (root / path).read_bytes().splitlines()
        found += [f"{path}:{i}: not ASCII" for i, line in enumerate(lines, 1) if not line.isascii()]
    return found


def without_twin(root: Path) -> list[str]:
    """Modules whose test file is missing.

    The twin of clipself_d2/a/b/c.py is tests/a/b/test_c.py or, one folder up, tests/a/test_c.py.
    """
    found = []
    for file in sorted((root / PACKAGE).rglob("*.py")):
        if file.name == "__init__.py":
            continue
        inside = file.relative_to(root / PACKAGE)
        twin = Path("tests") / inside.with_name(f"test_{inside.name}")
        nearer = twin.parent.parent / twin.name
        nested = len(inside.parts) > 2
        if not ((root / twin).is_file() or (nested and (root / nearer).is_file())):
            found.append(f"{PACKAGE}/{inside}: {twin} is missing")
    return found


RULES = [oversized, prints, mute_assertions, not_ascii, without_twin]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_project_keeps_the_rule(rule) -> None:
    assert len(list(python_files(ROOT))) > 10, "the rules are checked on too few files"
    found = rule(ROOT)
    assert not found, "\n" + "\n".join(found)


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("rule", "path", "source", "complaint"),
    [
        (oversized, "clipself_d2/planted.py", "x = 1\n" * 401, "planted.py: 401 lines"),
        (oversized, "tests/test_planted.py", LONG_FUNCTION, "test_planted.py:1: f has 81 lines"),
        (prints, "clipself_d2/planted.py", "x = 1\nprint(x)\n", "planted.py:2: print"),
        (mute_assertions, "tools/planted.py", "assert 1\n", "planted.py:1: assert without"),
        (not_ascii, "configs/planted.yaml", "# a\n# \u00e9\n", "planted.yaml:2: not ASCII"),
        (without_twin, "clipself_d2/a/b/c.py", "", "tests/a/b/test_c.py is missing"),
        (without_twin, "clipself_d2/c.py", "", "tests/test_c.py is missing"),
    ],
)
def test_planted_violation_is_found(rule, path, source, complaint, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    found = rule(tmp_path)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize("twin", ["tests/a/b/test_c.py", "tests/a/test_c.py"])
def test_twin_may_lie_in_the_package_folder_above(twin: str, tmp_path: Path) -> None:
    for path in ("clipself_d2/a/b/c.py", "clipself_d2/a/b/__init__.py", twin):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert without_twin(tmp_path) == []


def test_commands_may_print(tmp_path: Path) -> None:
    for path in ("tools/a.py", "datasets/b.py", "clipself_d2/doctor.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("print(1)\n", encoding="utf-8")
    assert prints(tmp_path) == []
