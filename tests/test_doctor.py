"""The doctor names what is wrong and the command that mends it, in environments broken here."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from clipself_d2 import __version__, doctor

ROOT = Path(__file__).resolve().parent.parent
COMPONENTS = {component[0]: component for component in doctor.COMPONENTS}
Breaker = Callable[[str, Exception], None]


@pytest.fixture
def break_import(monkeypatch: pytest.MonkeyPatch) -> Breaker:
    """Let the import of a module, and of what lies inside it, raise an error."""
    real = importlib.import_module
    errors: dict[str, Exception] = {}

    def import_module(name: str, package: str | None = None) -> ModuleType:
        for broken, error in errors.items():
            if name == broken or name.startswith(f"{broken}."):
                raise error
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
    return errors.__setitem__


def report(module: str) -> str:
    return doctor.check_component(*COMPONENTS[module])


def test_a_working_environment_is_ok_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert "(nms runs)" in printed
    assert f"ok    clipself_d2 {__version__} ({ROOT / 'clipself_d2'})" in printed
    assert "everything that clipself_d2 needs works" in printed
    assert "An issue report should contain" in printed


PIP = f"{sys.executable} -m pip"


@pytest.mark.parametrize(
    ("module", "error", "remedy"),
    [
        (
            "torchvision",
            RuntimeError("operator torchvision::nms does not exist\nmore"),
            f"{PIP} uninstall -y torch torchvision && {PIP} install torch torchvision",
        ),
        (
            "pkg_resources",
            ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources"),
            f'{PIP} install "setuptools<81"',
        ),
        ("cv2", ImportError("libGL.so.1: cannot open"), f"{PIP} install opencv-python-headless"),
        ("lvis", ModuleNotFoundError("No module named 'x'", name="x"), "setup_env.sh"),
        ("detectron2", ModuleNotFoundError("No 'yacs'", name="yacs"), "setup_env.sh"),
        ("detectron2.modeling", AttributeError("PIL.Image has no LINEAR"), "setup_env.sh"),
        (
            "pycocotools.mask",
            ValueError("numpy.dtype size changed"),
            "--force-reinstall --no-deps pycocotools",
        ),
    ],
)
def test_a_broken_part_has_one_line_with_its_error_and_its_remedy(
    module: str, error: Exception, remedy: str, break_import: Breaker
) -> None:
    break_import(module, error)
    line = report(module if module in COMPONENTS else module.partition(".")[0])
    assert line.startswith("FAIL  ")
    assert f"({type(error).__name__}: {str(error).splitlines()[0]})" in line
    assert line.endswith(remedy)
    assert "\n" not in line


def test_a_detectron2_that_is_there_but_broken_is_replaced(break_import: Breaker) -> None:
    break_import("detectron2", ImportError("cannot import name 'x'", name="detectron2"))
    assert "uninstall -y detectron2 sal-detectron2 && " in report("detectron2")


def test_detectron2_without_compiled_part_works(break_import: Breaker) -> None:
    break_import("detectron2._C", ImportError("undefined symbol"))
    assert report("detectron2").startswith("ok  ")
    assert "compiled ops do not load" in report("detectron2")


def test_a_wrong_nms_result_is_a_failure() -> None:
    class Kept:
        def tolist(self) -> list[int]:
            return [0, 1, 2]

    torchvision = ModuleType("torchvision")
    torchvision.ops = ModuleType("torchvision.ops")  # type: ignore[attr-defined]
    torchvision.ops.nms = lambda *_: Kept()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"kept boxes \[0, 1, 2\], expected \[1, 2\]"):
        doctor._run_nms(torchvision)


@pytest.mark.parametrize(
    ("version", "state"), [((3, 9), "FAIL"), ((3, 10), "ok"), ((3, 13), "FAIL")]
)
def test_only_supported_pythons_pass(
    version: tuple[int, int], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert next(doctor.examine()).startswith(f"{state:4}  python ")


@pytest.mark.parametrize(
    "planted",
    [
        {"torch": "ImportError('planted')", "detectron2": "ImportError('planted')"},
        {"torchvision": "RuntimeError('operator torchvision::nms does not exist')"},
    ],
)
def test_the_command_speaks_where_the_package_cannot_be_imported(
    planted: dict[str, str], tmp_path: Path
) -> None:
    for name, error in planted.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise {error}\n", encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "clipself_d2.doctor"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    failing = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
    assert failing[0].startswith(f"FAIL  {next(iter(planted))} ")
    assert "mend it with: " in failing[0]
    assert "mend the first one first" in run.stdout
