"""Importing the package registers everything, or says whose fault it is that it cannot."""

import os
import subprocess
from pathlib import Path

import pytest

import clipself_d2

ROOT = Path(__file__).resolve().parent.parent
REGISTERED = (
    "from detectron2.modeling import META_ARCH_REGISTRY as r; print('CLIPSelfDistiller' in r)"
)


def run(
    python: str, code: str, *arguments: str, path: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_argument_of_a_program_keeps_the_names_from_being_registered(python: str) -> None:
    done = run(python, f"import clipself_d2; {REGISTERED}", "-m", "clipself_d2.doctor")
    assert done.stdout == "True\n", done.stderr


def test_without_detectron2_clip_works_and_one_line_names_the_doctor(
    python: str, tmp_path: Path
) -> None:
    planted = "raise RuntimeError('operator planted::nms does not exist')"
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(planted, encoding="utf-8")
    done = run(python, "from clipself_d2.clip import load_tower; print('works')", path=tmp_path)
    assert done.stdout == "works\n", done.stderr
    assert done.stderr.count("python -m clipself_d2.doctor") == 1
    assert "planted" in done.stderr


@pytest.mark.parametrize(
    ("module", "is_ours"),
    [("detectron2", False), ("clipself_d2.data.gone", True), ("clipself_d2_other", False)],
)
def test_a_missing_module_is_ours_or_not_by_its_name(module: str, is_ours: bool) -> None:
    assert clipself_d2._is_ours(ModuleNotFoundError("gone", name=module)) is is_ours


def test_a_fault_of_our_own_is_an_error(python: str) -> None:
    # A module of ours that lacks the names which others take from it.
    fault = "sys.modules['clipself_d2.backbones.levels'] = ModuleType('empty')"
    done = run(python, f"import sys; from types import ModuleType; {fault}; import clipself_d2")
    assert done.returncode == 1
    assert "Error: " in done.stderr.splitlines()[-1]
    assert "doctor" not in done.stderr
