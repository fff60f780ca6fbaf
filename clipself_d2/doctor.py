"""Report on the installation: ``python -m clipself_d2.doctor``.

It has to speak in an environment in which nothing else works, so it imports the standard library
alone and everything it examines by name.
"""

import faulthandler
import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

ISSUE_REPORT = """\
An issue report should contain:
  - the report above, whole;
  - the exact command, and the config file with every KEY VALUE given on the command line;
  - the whole log with the traceback (OUTPUT_DIR/log.txt), not only its last line;
  - what you expected instead, and the smallest input that shows the difference;
  - for checkpoints and data sets: where they come from, and their sizes or checksums."""

PACKAGE_DIR = Path(__file__).resolve().parent
SCRIPT = PACKAGE_DIR.parent / "tools" / "setup_env.sh"
PIP = f"{sys.executable} -m pip"
# Installs whatever is missing, into the environment that the doctor runs in.
SET_UP = f"CLIPSELF_D2_NO_VENV=1 PYTHON={sys.executable} bash {SCRIPT}"
if Path(sys.prefix).resolve() == PACKAGE_DIR.parent / ".venv":
    SET_UP = f"bash {SCRIPT}"
if not SCRIPT.is_file():
    SET_UP = f"{PIP} install --upgrade clipself_d2"
TORCH = f"{PIP} uninstall -y torch torchvision && {PIP} install torch torchvision"
OPENCV = (
    f"{PIP} uninstall -y opencv-python opencv-python-headless && "
    f"{PIP} install opencv-python-headless"
)
DETECTRON2 = f"{PIP} uninstall -y detectron2 sal-detectron2 && {SET_UP}"


def _describe_torch(torch: ModuleType) -> str:
    if torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, GPU: {torch.cuda.get_device_name(0)}"
    if torch.version.cuda and Path("/proc/driver/nvidia/version").is_file():
        return f"CUDA {torch.version.cuda} does not run on this NVIDIA driver; update one of them"
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


Probe = Callable[[ModuleType], str]
# Module, distribution, the command that mends it where it is there but broken ("" reinstalls it),
# and what is tried beyond the import. What a component needs stands above it.
COMPONENTS: tuple[tuple[str, str, str, Probe | None], ...] = (
    ("pkg_resources", "setuptools", f'{PIP} install "setuptools<81"', None),
    ("numpy", "numpy", "", None),
    ("PIL", "pillow", "", None),
    ("torch", "torch", TORCH, _describe_torch),
    ("torchvision", "torchvision", TORCH, _run_nms),
    ("timm", "timm", "", None),
    ("open_clip", "open_clip_torch", "", None),
    ("fvcore", "fvcore", "", None),
    ("cv2", "opencv-python-headless", OPENCV, None),
    ("pycocotools.mask", "pycocotools", "", None),
    ("hotcoco", "hotcoco", "", None),
    ("lvis", "lvis", "", None),
    ("detectron2", "detectron2", DETECTRON2, _probe_detectron2),
    ("clipself_d2", "clipself_d2", SET_UP, _probe_project),
)
# What works without them.
OPTIONAL = {
    "hotcoco": "pycocotools scores in its place, slower",
    "lvis": "LVIS is scored by hotcoco alone",
}


def _version(distribution: str, module: ModuleType | None = None) -> str:
    try:
        return str(getattr(module, "__version__", None) or metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return "(version unknown)"


def check_component(module: str, distribution: str, mend: str, probe: Probe | None) -> str:
    """Import a component and try it; the line of the report begins with ok or FAIL.

    Args:
        module: What is imported.
        distribution: What pip calls it.
        mend: Command for a broken one; "" reinstalls it.
        probe: Called with the module; raises if it cannot work, returns a detail.
    """
    try:
        imported = importlib.import_module(module)
        detail = f" ({probe(imported)})" if probe else ""
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0][:160]
        absent = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
        if isinstance(error, ModuleNotFoundError) and absent == module and module in OPTIONAL:
            return f"ok    {distribution} is not installed; {OPTIONAL[module]}"
        if isinstance(error, ModuleNotFoundError) and absent != "pkg_resources":
            mend = SET_UP
        mend = mend or f"{PIP} install --force-reinstall --no-deps {distribution}"
        line = f"{distribution} {_version(distribution)} ({type(error).__name__}: {reason})"
        return f"FAIL  {line}; mend it with: {mend}"
    return f"ok    {distribution} {_version(distribution, imported)}{detail}"


def examine() -> Iterator[str]:
    """Examine the machine and every component, and yield lines of the report."""
    python = f"python {platform.python_version()} ({sys.executable})"
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        yield f"ok    {python}"
    else:
        mend = "PYTHON=python3.11 bash tools/setup_env.sh"
        yield f"FAIL  {python} is not supported, Python 3.10 to 3.12 is; mend it with: {mend}"
    yield f"ok    platform {platform.platform()}, {os.cpu_count()} cores"
    for component in COMPONENTS:
        yield check_component(*component)
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
    state = f"{len(list(root.iterdir()))} entries" if root.is_dir() else "does not exist"
    yield f"ok    data sets are looked for in {root} ({state})"


def main() -> int:
    """Print the report, line by line as it is found; 0 if everything works, else 1."""
    failures = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in examine():
            failures += line.startswith("FAIL")
            print(line, flush=True)
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
