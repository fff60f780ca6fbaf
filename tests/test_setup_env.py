"""tools/setup_env.sh, tools/test.sh and setup.py, run with a Python whose pip only takes notes."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipself_d2 import __version__

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash")

# Stands for Python: pip, venv and the doctor are written to a log; anything else is run for real.
FAKE_PYTHON = f"""\
#!{BASH}
case "$1 $2" in
  "-c import sys; sys.exit("*) [ "${{FAKE_VERSION:-3.11}}" = 3.11 ] ; exit ;;
  "-c import sys; print(sys.executable)") echo "$0"; exit ;;
  "-m pip" | "-m ensurepip") shift 2; echo "pip $*" >> "$FAKE_LOG"
    for word in "$@"; do
      case "$word" in */detectron2.txt | */constraints.txt) cat "$word" >> "$FAKE_LOG" ;; esac
    done
    case "$*" in *"${{FAKE_PIP_FAILURE:-nothing}}"*) exit 1 ;; esac ;;
  "-m venv") echo "venv" >> "$FAKE_LOG"; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m clipself_d2.doctor") echo "doctor" >> "$FAKE_LOG"; echo "ok    python 3.11"
    echo "An issue report"; exit "${{FAKE_DOCTOR:-0}}" ;;
  "-m ruff" | "-m mypy" | "-m mkdocs" | "-m pytest") shift; echo "$*" >> "$FAKE_LOG"
    [ "${{FAKE_FAILURE:-nothing}}" != "$1" ]; exit ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""


@dataclass(frozen=True)
class Project:
    """A copy of the files of the set-up, beside a folder of fake Pythons."""

    root: Path
    bin: Path
    log: Path

    def run(
        self, *arguments: str, script: str = "setup_env.sh", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Call a script of tools/ in a clean environment and return what it said."""
        self.log.write_text("", encoding="utf-8")
        return subprocess.run(
            [str(BASH), str(self.root / "tools" / script), *arguments],
            env={
                "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
                "FAKE_LOG": str(self.log),
                **environment,
            },
            cwd=self.root.parent,
            capture_output=True,
            text=True,
            check=False,
        )

    def steps(self) -> list[str]:
        """What the fake Python noted in the last call."""
        return self.log.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "my project"
    (root / "tools").mkdir(parents=True)
    (root / "clipself_d2").mkdir()
    for name in ("setup.py", "tools/setup_env.sh", "tools/test.sh", "tools/constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "python3", "python3.10", "python3.11", "python3.12"):
        (folder / name).write_text(FAKE_PYTHON, encoding="utf-8")
        (folder / name).chmod(0o755)
    return Project(root, folder, tmp_path / "log")


def test_first_call_makes_venv_and_installs_under_constraints(project: Project) -> None:
    run = project.run()
    assert run.returncode == 0, run.stderr
    steps = project.steps()
    assert "venv" in steps
    installs = [step for step in steps if " install " in step]
    torch = next(step for step in installs if step.endswith("torch torchvision"))
    assert "--constraint" in torch
    package = next(step for step in installs if "--editable .[dev,docs]" in step)
    assert "--constraint" in package
    assert installs.index(torch) < installs.index(package)
    assert steps[-1] == "doctor"
    assert "An issue report" in run.stdout


def test_second_call_does_nothing_in_less_than_five_seconds(project: Project) -> None:
    assert project.run().returncode == 0
    begun = time.monotonic()
    run = project.run()
    assert time.monotonic() - begun < 5
    assert run.returncode == 0
    assert project.steps() == []
    assert "ok    python 3.11" in run.stdout
    assert "nothing to do" in run.stdout


def test_changed_definition_is_installed(project: Project) -> None:
    assert project.run().returncode == 0
    for name in ("setup.py", "tools/constraints.txt", "tools/setup_env.sh"):
        with (project.root / name).open("a", encoding="utf-8") as file:
            file.write("# another line\n")
        assert project.run().returncode == 0
        assert "venv" not in project.steps()
        assert "doctor" in project.steps(), name


def test_folder_that_moved_is_installed_again(project: Project, tmp_path: Path) -> None:
    assert project.run().returncode == 0
    moved = Project(tmp_path / "moved", project.bin, project.log)
    project.root.rename(moved.root)
    assert moved.run().returncode == 0
    assert "doctor" in moved.steps()


def test_interrupted_installation_is_not_trusted(project: Project) -> None:
    run = project.run(FAKE_PIP_FAILURE="torch torchvision")
    assert run.returncode == 1
    assert "pip failed" in run.stderr
    assert "doctor" not in project.steps()
    assert project.run().returncode == 0
    assert "doctor" in project.steps()


def test_failing_doctor_fails_the_set_up_and_leaves_no_stamp(project: Project) -> None:
    run = project.run(FAKE_DOCTOR="1")
    assert run.returncode == 1
    assert "every line with FAIL says what mends it" in run.stderr
    assert not list(project.root.rglob("*.stamp*"))
    assert project.run().returncode == 0


def test_active_environment_is_used_without_venv(project: Project) -> None:
    run = project.run("--python", CLIPSELF_D2_NO_VENV="1")
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{project.bin / 'python3'}\n"
    assert "venv" not in project.steps()
    assert not (project.root / ".venv").exists()
    project.run(CLIPSELF_D2_NO_VENV="1")
    assert project.steps() == []


def test_active_environment_keeps_the_packages_it_has(project: Project) -> None:
    def pinned_names() -> set[str]:
        return {re.split("[=<]", step)[0] for step in project.steps() if "=" in step or "<" in step}

    project.run()
    assert {"numpy", "torch", "torchvision", "setuptools"} <= pinned_names()
    project.run(CLIPSELF_D2_NO_VENV="1")
    assert "setuptools<81" in project.steps()
    assert not {"numpy", "torch", "torchvision"} & pinned_names()


def test_python_flag_prints_the_interpreter_alone(project: Project) -> None:
    for _ in range(2):
        run = project.run("--python")
        assert run.stdout == f"{project.root}/.venv/bin/python\n"


def test_unknown_argument_is_refused(project: Project) -> None:
    run = project.run("--help-me")
    assert run.returncode == 2
    assert "unknown argument --help-me" in run.stderr


def test_machine_without_a_supported_python_gets_one_sentence(project: Project) -> None:
    run = project.run(FAKE_VERSION="3.9")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "no Python 3.10, 3.11 or 3.12 found; install one" in run.stderr


def test_unsupported_python_that_was_asked_for_is_named(project: Project) -> None:
    run = project.run(PYTHON="python3.9", FAKE_VERSION="3.9")
    assert run.returncode == 1
    assert "PYTHON=python3.9 is not a Python 3.10, 3.11 or 3.12" in run.stderr


@pytest.fixture
def bare(project: Project) -> Project:
    """A project whose interpreter finds no installed package at all, hence no Detectron2."""
    for file in project.bin.iterdir():
        source = FAKE_PYTHON.replace(f'"{sys.executable}" "$@"', f'"{sys.executable}" -S "$@"')
        file.write_text(source, encoding="utf-8")
    return project


def test_absent_detectron2_comes_as_the_checked_wheel(bare: Project) -> None:
    assert bare.run().returncode == 0
    steps = bare.steps()
    wheel = next(step for step in steps if "--target" in step)
    for flag in ("--require-hashes", "--no-deps", "--python-version 3.10", "--only-binary=:all:"):
        assert flag in wheel
    assert any(
        re.fullmatch(r"sal-detectron2==0\.7\.2 --hash=sha256:[0-9a-f]{64}", s) for s in steps
    )
    assert any(step.endswith("--no-deps lvis") for step in steps)


def test_missing_wheel_leads_to_the_official_build(bare: Project) -> None:
    run = bare.run(FAKE_PIP_FAILURE="--target")
    assert run.returncode == 1
    assert "pip install --no-build-isolation 'git+https://" in run.stderr


def test_importable_detectron2_and_lvis_are_left_alone(project: Project) -> None:
    run = project.run()
    assert "detectron2: there already" in run.stdout
    assert not any("--target" in step or step.endswith("lvis") for step in project.steps())


def test_test_script_runs_every_stage_and_hands_arguments_to_pytest(project: Project) -> None:
    assert project.run().returncode == 0
    run = project.run("tests/layers", "-x", script="test.sh")
    assert run.returncode == 0, run.stderr
    steps = project.steps()
    assert [step.split()[0] for step in steps] == ["ruff", "ruff", "mypy", "mkdocs", "pytest"]
    assert steps[-1].endswith(" tests/layers -x")
    assert run.stdout.splitlines()[-1].startswith("all passed in ")
    for stage in ("ruff", "mypy", "pytest"):
        run = project.run(script="test.sh", FAKE_FAILURE=stage)
        assert run.returncode == 1
        assert len(project.steps()) == 5, "a stage that fails must not hide the next"
        assert re.search(rf"^{stage}.*FAILED", run.stdout, re.MULTILINE)
        assert run.stdout.splitlines()[-1].startswith("FAILED in ")


def test_test_script_ends_where_the_set_up_fails(project: Project) -> None:
    run = project.run(script="test.sh", FAKE_DOCTOR="1")
    assert run.returncode == 1
    assert not any(step.startswith("pytest ") for step in project.steps())


def setup_fields(*fields: str) -> list[str]:
    flags = [f"--{field}" for field in fields]
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split()


def test_setup_states_name_and_version_of_the_package() -> None:
    assert setup_fields("name", "version") == ["clipself_d2", __version__]


def quoted_requirements() -> list[str]:
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = source[source.index("REQUIREMENTS") : source.index("EXTRAS")]
    return re.findall(r'^    "([^"]+)",', block, re.MULTILINE)


def test_every_dependency_has_a_bound_and_a_pin() -> None:
    requirements = quoted_requirements()
    assert len(requirements) > 20
    pins = (ROOT / "tools" / "constraints.txt").read_text(encoding="utf-8").replace("-", "_")
    for requirement in requirements:
        name = re.split(r"[<>=]", requirement)[0]
        assert name != requirement, f"{name} has no bound"
        pin = rf"^{name.replace('-', '_')}=="
        assert re.search(pin, pins, re.MULTILINE), f"{name} has no pin"


def test_pins_are_exact_and_cover_each_python_once() -> None:
    versions: dict[str, list[str]] = {}
    for line in (ROOT / "tools" / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = re.fullmatch(r'([a-z0-9-]+)==[\w.]+(?:; python_version (<|>=) "3\.11")?', line)
        assert pin, f"not an exact pin: {line}"
        versions.setdefault(pin[1], []).append(pin[2] or "")
    for name, markers in versions.items():
        assert len(set(markers)) == len(markers), f"{name} is pinned twice for one Python"
        assert "" not in markers or markers == [""], f"{name} is pinned twice for one Python"
    assert versions["torch"] == versions["torchvision"] == ["<", ">="]


def test_no_package_index_is_named() -> None:
    for name in ("setup.py", "tools/setup_env.sh", "tools/test.sh", "tools/constraints.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"index-url|find-links|pypi\.org|download\.pytorch", text), name
