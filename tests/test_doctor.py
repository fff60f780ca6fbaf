"""The doctor names what is wrong and the command that mends it, in environments broken here."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from clipself_d2 import __version__, doctor
from clipself_d2.doctor import Finding

ROOT = Path(__file__).resolve().parent.parent
BY_LABEL = {component.label: component for component in doctor.COMPONENTS}
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


@pytest.fixture
def stub_imports(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """Answer every import with an empty module, so that a whole report costs nothing."""
    modules: dict[str, ModuleType] = {}

    def import_module(name: str, package: str | None = None) -> ModuleType:
        return modules.setdefault(name, ModuleType(name))

    monkeypatch.setattr(importlib, "import_module", import_module)
    unprobed = tuple(replace(component, probe=None) for component in doctor.COMPONENTS)
    monkeypatch.setattr(doctor, "COMPONENTS", unprobed)
    return modules


def test_working_component_shows_its_version() -> None:
    installed = importlib.metadata.version("numpy")
    assert doctor.check_component(BY_LABEL["numpy"]) == Finding(True, f"numpy {installed}")


def test_torchvision_is_asked_to_run_nms() -> None:
    finding = doctor.check_component(BY_LABEL["torchvision"])
    assert finding.ok
    assert finding.line.endswith("(nms runs)")


def test_project_imports_all_its_packages_and_shows_where_it_lies() -> None:
    finding = doctor.check_component(BY_LABEL["clipself_d2"])
    assert finding.ok, finding.line
    assert finding.line == f"clipself_d2 {__version__} ({ROOT / 'clipself_d2'})"


def test_missing_nms_operator_names_both_packages_and_reinstalls_the_pair(
    break_import: Breaker,
) -> None:
    error = RuntimeError("operator torchvision::nms does not exist\nmore")
    break_import("torchvision", error)
    finding = doctor.check_component(BY_LABEL["torchvision"])
    assert not finding.ok
    assert finding.line.startswith("torchvision ")
    assert "does not fit torch" in finding.line
    assert "operator torchvision::nms does not exist" in finding.line
    assert "\n" not in finding.line
    pip = f"{sys.executable} -m pip"
    assert finding.remedy == (
        f"{pip} uninstall -y torch torchvision && {pip} install torch torchvision"
    )


def test_wrong_nms_result_is_a_failure() -> None:
    class Kept:
        def tolist(self) -> list[int]:
            return [0, 1, 2]

    torchvision = ModuleType("torchvision")
    torchvision.ops = ModuleType("torchvision.ops")  # type: ignore[attr-defined]
    torchvision.ops.nms = lambda *_: Kept()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"kept boxes \[0, 1, 2\], expected \[1, 2\]"):
        doctor._run_nms(torchvision)


def test_setuptools_without_pkg_resources_is_named(break_import: Breaker) -> None:
    error = ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")
    break_import("pkg_resources", error)
    finding = doctor.check_component(BY_LABEL["setuptools"])
    assert not finding.ok
    assert "lacks pkg_resources" in finding.line
    assert finding.remedy == f'{sys.executable} -m pip install "setuptools<81"'


def test_missing_libgl_leads_to_the_headless_opencv(break_import: Breaker) -> None:
    error = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    break_import("cv2", error)
    finding = doctor.check_component(BY_LABEL["cv2"])
    assert not finding.ok
    assert "needs the system library libGL" in finding.line
    assert "uninstall -y opencv-python opencv-python-headless" in finding.remedy
    assert finding.remedy.endswith("pip install opencv-python-headless")


def test_absent_component_is_installed_by_the_set_up(break_import: Breaker) -> None:
    break_import("lvis", ModuleNotFoundError("No module named 'lvis'", name="lvis"))
    finding = doctor.check_component(BY_LABEL["lvis"])
    assert finding.line == "lvis is not installed"
    assert finding.remedy.endswith(f"bash {ROOT / 'tools' / 'setup_env.sh'}")


def test_absent_dependency_of_a_component_is_named(break_import: Breaker) -> None:
    break_import("detectron2", ModuleNotFoundError("No module named 'yacs'", name="yacs"))
    finding = doctor.check_component(BY_LABEL["detectron2"])
    assert "needs the missing module yacs" in finding.line
    assert finding.remedy.endswith("setup_env.sh")
    assert "uninstall" not in finding.remedy


def test_broken_detectron2_is_replaced(break_import: Breaker) -> None:
    break_import("detectron2", ImportError("cannot import name 'x' from 'detectron2'"))
    finding = doctor.check_component(BY_LABEL["detectron2"])
    assert "cannot be imported (ImportError: cannot import name 'x'" in finding.line
    assert "uninstall -y detectron2 sal-detectron2 && " in finding.remedy


def test_detectron2_whose_parts_fail_is_broken(break_import: Breaker) -> None:
    break_import("detectron2.modeling", AttributeError("module 'PIL.Image' has no LINEAR"))
    assert not doctor.check_component(BY_LABEL["detectron2"]).ok


def test_detectron2_without_compiled_part_works(break_import: Breaker) -> None:
    break_import("detectron2._C", ImportError("undefined symbol"))
    finding = doctor.check_component(BY_LABEL["detectron2"])
    assert finding.ok
    assert "compiled ops do not load" in finding.line


def test_any_other_failure_reinstalls_the_distribution(break_import: Breaker) -> None:
    break_import("pycocotools", ValueError("numpy.dtype size changed"))
    finding = doctor.check_component(BY_LABEL["pycocotools"])
    assert "ValueError: numpy.dtype size changed" in finding.line
    assert finding.remedy.endswith("--force-reinstall --no-deps pycocotools")


@pytest.mark.parametrize(
    ("own_venv", "command"), [(True, "bash"), (False, "CLIPSELF_D2_NO_VENV=1")]
)
def test_set_up_command_suits_the_environment(
    own_venv: bool, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for folder in ("tools", "clipself_d2", ".venv"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tools" / "setup_env.sh").touch()
    monkeypatch.setattr(doctor, "PACKAGE_DIR", tmp_path / "clipself_d2")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv") if own_venv else "/elsewhere")
    assert doctor._setup_command().startswith(command)
    assert doctor._setup_command().endswith(f"bash {tmp_path / 'tools' / 'setup_env.sh'}")


def test_set_up_command_without_the_script_is_pip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "PACKAGE_DIR", tmp_path / "clipself_d2")
    assert doctor._setup_command().endswith("pip install --upgrade clipself_d2")


@pytest.mark.parametrize(("version", "ok"), [((3, 9), False), ((3, 10), True), ((3, 13), False)])
def test_only_supported_pythons_pass(
    version: tuple[int, int], ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    finding = doctor.check_python()
    assert finding.ok is ok
    assert bool(finding.remedy) is not ok


def test_processor_features_are_read_from_the_kernel(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t: fpu avx2 avx512_bf16\nflags : sve\n")
    assert doctor.check_processor(cpuinfo).line.endswith("features: avx2 avx512_bf16")
    assert doctor.check_processor(tmp_path / "absent").line.endswith("features: none known")


def test_datasets_root_is_listed(tmp_path: Path) -> None:
    assert doctor.check_datasets_root(str(tmp_path)).line.endswith("(empty)")
    for name in ("lvis", "coco"):
        (tmp_path / name).mkdir()
    (tmp_path / "file.txt").touch()
    line = f"DETECTRON2_DATASETS {tmp_path} (coco, lvis)"
    assert doctor.check_datasets_root(str(tmp_path)) == Finding(True, line)
    assert "does not exist" in doctor.check_datasets_root(str(tmp_path / "absent")).line
    assert "not set" in doctor.check_datasets_root(None).line


def test_labels_are_unique_and_needs_come_earlier() -> None:
    seen: set[str] = set()
    for component in doctor.COMPONENTS:
        assert set(component.needs) <= seen
        assert component.label not in seen
        seen.add(component.label)


def test_component_waits_for_what_it_needs(
    stub_imports: dict[str, ModuleType], break_import: Breaker
) -> None:
    break_import("torchvision", RuntimeError("operator torchvision::nms does not exist"))
    findings = {finding.line.split()[0]: finding for finding in doctor.examine()}
    assert findings["torch"].ok
    assert findings["lvis"].ok
    assert findings["timm"] == Finding(False, "timm waits for torchvision")
    assert findings["open_clip"] == Finding(False, "open_clip waits for timm")
    assert findings["detectron2"] == Finding(False, "detectron2 waits for torchvision")
    assert findings["clipself_d2"].line == "clipself_d2 waits for detectron2, open_clip"


def test_report_of_a_whole_environment_ends_with_zero(
    stub_imports: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert "everything that clipself_d2 needs works" in printed
    assert "An issue report should contain" in printed
    for component in doctor.COMPONENTS:
        assert f"ok    {component.label} " in printed


def test_report_of_a_broken_environment_ends_with_one(
    stub_imports: dict[str, ModuleType],
    break_import: Breaker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_import("hotcoco", ModuleNotFoundError("No module named 'hotcoco'", name="hotcoco"))
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert "FAIL  hotcoco is not installed; mend it with: " in printed
    assert "FAIL  clipself_d2 waits for hotcoco\n" in printed
    assert "2 of these parts do not work" in printed


def run_with_planted_packages(folder: Path, **sources: str) -> subprocess.CompletedProcess[str]:
    """Run the command with packages of the given sources in front of the installed ones."""
    for name, source in sources.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "clipself_d2.doctor"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


# In both, the package's own registration cannot be imported; the command has to get past it.


def test_command_speaks_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    planted = "raise ImportError('planted failure')\n"
    run = run_with_planted_packages(tmp_path, torch=planted, detectron2=planted)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    failing = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
    assert "cannot be imported (ImportError: planted failure)" in failing[0]
    assert "mend it with: " in failing[0]
    assert "FAIL  detectron2 waits for torchvision, fvcore" in failing


def test_command_speaks_where_torchvision_does_not_fit_torch(tmp_path: Path) -> None:
    planted = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    run = run_with_planted_packages(tmp_path, torchvision=planted)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    failing = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
    assert failing[0].startswith("FAIL  torchvision")
    assert "does not fit torch" in failing[0]
    assert "FAIL  detectron2 waits for torchvision" in failing
