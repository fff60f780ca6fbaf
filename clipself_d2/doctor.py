"""Report on the installation: ``python -m clipself_d2.doctor``.

It has to speak in an environment in which nothing else works, so it imports the standard library
alone and everything it examines by name.
"""

import faulthandler
import importlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import NamedTuple

ISSUE_REPORT = """\
An issue report should contain:
  - the report above, whole;
  - the exact command, and the config file with every KEY VALUE given on the command line;
  - the whole log with the traceback (OUTPUT_DIR/log.txt), not only its last line;
  - what you expected instead, and the smallest input that shows the difference;
  - for checkpoints and data sets: where they come from, and their sizes or checksums."""

PACKAGE_DIR = Path(__file__).resolve().parent
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "bf16")


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        ok: Whether this part works.
        line: One sentence: the component and its version, or what is wrong with it.
        remedy: The command that mends it; "" where there is nothing to mend or another part
            has to be mended first.
    """

    ok: bool
    line: str
    remedy: str = ""


@dataclass(frozen=True)
class Component:
    """A package to examine.

    Attributes:
        label: Name in the report; unique.
        module: Module to import.
        distribution: Name of the installed distribution, asked for the version if the module
            has none.
        needs: Labels of components that this one imports; it is not examined while one is broken.
        probe: Called with the imported module; raises if the part cannot work, returns a detail
            for the report or "".
        remedy: Command that mends a broken import; None for a plain reinstallation.
    """

    label: str
    module: str
    distribution: str
    needs: tuple[str, ...] = ()
    probe: Callable[[ModuleType], str] | None = None
    remedy: Callable[[], str] | None = None


def _pip(arguments: str) -> str:
    return f"{sys.executable} -m pip {arguments}"


def _setup_command() -> str:
    """Command that installs whatever is missing, for the environment the doctor runs in."""
    script = PACKAGE_DIR.parent / "tools" / "setup_env.sh"
    if not script.is_file():
        return _pip("install --upgrade clipself_d2")
    own = PACKAGE_DIR.parent / ".venv"
    if own.is_dir() and Path(sys.prefix).resolve() == own.resolve():
        return f"bash {script}"
    return f"CLIPSELF_D2_NO_VENV=1 PYTHON={sys.executable} bash {script}"


def _torch_command() -> str:
    return f"{_pip('uninstall -y torch torchvision')} && {_pip('install torch torchvision')}"


def _setuptools_command() -> str:
    return _pip('install "setuptools<81"')


def _opencv_command() -> str:
    both = "opencv-python opencv-python-headless"
    return f"{_pip(f'uninstall -y {both}')} && {_pip('install opencv-python-headless')}"


def _detectron2_command() -> str:
    if importlib.util.find_spec("detectron2") is None:
        return _setup_command()
    return f"{_pip('uninstall -y detectron2 sal-detectron2')} && {_setup_command()}"


def _describe_torch(torch: ModuleType) -> str:
    if torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, GPU: {torch.cuda.get_device_name(0)}"
    if torch.version.cuda and Path("/proc/driver/nvidia/version").is_file():
        return (
            f"CUDA {torch.version.cuda} does not run on this machine's NVIDIA driver, so the "
            "processor computes; update the driver or install a torch for its CUDA version"
        )
    return f"built for CUDA {torch.version.cuda}, no GPU here" if torch.version.cuda else "no CUDA"


def _run_nms(torchvision: ModuleType) -> str:
    torch = importlib.import_module("torch")
    boxes_XYXY = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [9.0, 9.0, 12.0, 12.0]])
    kept = torchvision.ops.nms(boxes_XYXY, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
    if kept != [1, 2]:
        raise RuntimeError(f"nms kept boxes {kept}, expected [1, 2]")
    return "nms runs"


def _probe_detectron2(_: ModuleType) -> str:
    for name in ("config", "model_zoo", "modeling", "engine", "evaluation"):
        importlib.import_module(f"detectron2.{name}")
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return "compiled ops do not load; rotated boxes and deformable convolution need them"
    return "compiled ops load"


def _probe_project(package: ModuleType) -> str:
    for module in iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")
    return str(PACKAGE_DIR)


COMPONENTS = (
    Component("setuptools", "pkg_resources", "setuptools", remedy=_setuptools_command),
    Component("numpy", "numpy", "numpy"),
    Component("pillow", "PIL", "pillow"),
    Component("torch", "torch", "torch", ("numpy",), _describe_torch, _torch_command),
    Component(
        "torchvision", "torchvision", "torchvision", ("torch", "pillow"), _run_nms, _torch_command
    ),
    Component("timm", "timm", "timm", ("torchvision",)),
    Component("open_clip", "open_clip", "open_clip_torch", ("timm",)),
    Component("fvcore", "fvcore", "fvcore", ("torch",)),
    Component("cv2", "cv2", "opencv-python-headless", ("numpy",), remedy=_opencv_command),
    Component("pycocotools", "pycocotools.mask", "pycocotools", ("numpy",)),
    Component("hotcoco", "hotcoco", "hotcoco", ("numpy",)),
    Component("lvis", "lvis", "lvis", ("cv2", "pycocotools")),
    Component(
        "detectron2",
        "detectron2",
        "detectron2",
        ("setuptools", "torchvision", "fvcore", "cv2", "pycocotools"),
        _probe_detectron2,
        _detectron2_command,
    ),
    Component(
        "clipself_d2",
        "clipself_d2",
        "clipself_d2",
        ("detectron2", "open_clip", "hotcoco"),
        _probe_project,
        _setup_command,
    ),
)


def _version(module: ModuleType, distribution: str) -> str:
    version = getattr(module, "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(version unknown)"


def _installed(distribution: str) -> str:
    try:
        return f" {metadata.version(distribution)}"
    except metadata.PackageNotFoundError:
        return ""


def _failure(component: Component, error: Exception) -> Finding:
    """Put an exception of an import or a probe into one sentence with the command that mends it."""
    first_line = (str(error).strip() or "no message").splitlines()[0][:160]
    reason = f"{type(error).__name__}: {first_line}"
    absent = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    own = component.module.partition(".")[0]
    if absent == "pkg_resources":
        line = f"setuptools{_installed('setuptools')} lacks pkg_resources, which Detectron2 imports"
        return Finding(False, line, _setuptools_command())
    if absent == own and own != "clipself_d2":
        remedy = component.remedy or _setup_command
        return Finding(False, f"{component.label} is not installed", remedy())
    name = f"{component.label}{_installed(component.distribution)}"
    if absent and absent.partition(".")[0] != own:
        return Finding(False, f"{name} needs the missing module {absent}", _setup_command())
    if component.label == "torchvision":
        line = f"{name} does not fit torch{_installed('torch')} ({reason})"
    elif "libGL" in str(error):
        line = f"{name} needs the system library libGL, its headless build does not ({reason})"
        return Finding(False, line, _opencv_command())
    else:
        line = f"{name} cannot be imported ({reason})"
    reinstall = _pip(f"install --force-reinstall --no-deps {component.distribution}")
    return Finding(False, line, component.remedy() if component.remedy else reinstall)


def check_component(component: Component) -> Finding:
    """Import one component and run its probe.

    Args:
        component: What to examine.

    Returns:
        The finding; any exception of the component becomes its sentence.
    """
    try:
        module = importlib.import_module(component.module)
        detail = component.probe(module) if component.probe else ""
    except Exception as error:
        return _failure(component, error)
    version = _version(module, component.distribution)
    return Finding(True, f"{component.label} {version}" + (f" ({detail})" if detail else ""))


def check_python() -> Finding:
    """Check the interpreter's version.

    Returns:
        A failure outside Python 3.10 to 3.12.
    """
    line = f"python {platform.python_version()} ({sys.executable})"
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding(True, line)
    line = f"{line} is not supported, Python 3.10 to 3.12 is"
    return Finding(False, line, "PYTHON=python3.11 bash tools/setup_env.sh")


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Describe the processor: cores, and the instructions that bfloat16 arithmetic gains from.

    Args:
        cpuinfo: The kernel's list of processors; other systems have none.

    Returns:
        A finding that is always ok.
    """
    flags: set[str] = set()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    found = " ".join(name for name in CPU_FEATURES if name in flags) or "none known"
    return Finding(True, f"processor {os.cpu_count()} cores, features: {found}")


def check_datasets_root(root: str | None) -> Finding:
    """Describe the folder in which Detectron2 looks for data sets.

    Args:
        root: Value of the environment variable DETECTRON2_DATASETS; None if it is not set.

    Returns:
        A finding that is always ok: a data set is missed when it is used.
    """
    folder = Path(root) if root else Path("datasets")
    shown = f"DETECTRON2_DATASETS {root}" if root else "DETECTRON2_DATASETS not set, so ./datasets"
    if not folder.is_dir():
        return Finding(True, f"{shown} (does not exist)")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "empty"
    return Finding(True, f"{shown} ({listing})")


def examine() -> Iterator[Finding]:
    """Examine the machine and every component, one at a time.

    Yields:
        Findings in the order of the report. A component whose needs are broken is not imported:
        its own failure would only repeat theirs.
    """
    yield check_python()
    yield Finding(True, f"platform {platform.platform()}")
    yield check_processor()
    broken: set[str] = set()
    for component in COMPONENTS:
        causes = [name for name in component.needs if name in broken]
        if causes:
            finding = Finding(False, f"{component.label} waits for {', '.join(causes)}")
        else:
            finding = check_component(component)
        if not finding.ok:
            broken.add(component.label)
        yield finding
    yield check_datasets_root(os.environ.get("DETECTRON2_DATASETS"))


def main() -> int:
    """Print the report, line by line as it is found.

    Returns:
        0 if everything works, else 1.
    """
    failures = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for finding in examine():
            failures += not finding.ok
            mend = f"; mend it with: {finding.remedy}" if finding.remedy else ""
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.line}{mend}", flush=True)
    if failures:
        print(f"{failures} of these parts do not work; mend the first one first, then run me again")
    else:
        print("everything that clipself_d2 needs works")
    print(ISSUE_REPORT)
    return 1 if failures else 0


if __name__ == "__main__":
    # A library built for another machine can end the interpreter; then at least say where.
    faulthandler.enable()
    sys.exit(main())
