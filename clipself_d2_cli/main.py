"""``clipself-d2 COMMAND``: every script of tools/ and datasets/, also without the repository."""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

_HERE = Path(__file__).resolve().parent
# A wheel carries the scripts beside this file, a checkout in its own folders.
FOLDERS = (_HERE / "scripts", _HERE.parent / "tools", _HERE.parent / "datasets")
# Commands that are not called as their script is.
SCRIPTS = {
    "train": "train_net",
    "distill": "distill_train_net",
    "train-lazy": "lazyconfig_train_net",
    "predict": "demo",
    "serve": "web_demo",
    "analyze": "analyze_region_alignment",
}
_PACKAGE_COMMANDS = {"doctor": "clipself_d2.doctor"}


def find_commands() -> dict[str, Path]:
    """List the commands.

    Returns:
        Their scripts by name, sorted.
    """
    names = {script: name for name, script in SCRIPTS.items()}
    files = [path for folder in FOLDERS for path in folder.glob("*.py")]
    found = {names.get(path.stem, path.stem.replace("_", "-")): path for path in files}
    return dict(sorted(found.items()))


def _load(name: str, path: Path) -> ModuleSpec:
    spec = importlib.util.spec_from_file_location(f"_clipself_d2_{name}", path)
    assert spec is not None, f"{path} is a Python file"
    return spec


def main() -> int:
    """Run the command that the first word names; the rest are its flags.

    Returns:
        Its exit code.
    """
    commands = find_commands()
    name, *flags = sys.argv[1:] or ["--help"]
    if name not in commands and name not in _PACKAGE_COMMANDS:
        listed = "\n".join(f"  {command}" for command in sorted({*commands, *_PACKAGE_COMMANDS}))
        shown = f"usage: clipself-d2 COMMAND ...; flags: clipself-d2 COMMAND --help\n\n{listed}\n"
        if name in ("-h", "--help"):
            sys.stdout.write(shown)
            return 0
        sys.stderr.write(f"{shown}\nclipself-d2: error: {name!r} is no command\n")
        return 2
    sys.argv = [f"clipself-d2 {name}", *flags]
    if name in _PACKAGE_COMMANDS:
        module = importlib.import_module(_PACKAGE_COMMANDS[name])
    else:
        spec = _load(name, commands[name])
        module = importlib.util.module_from_spec(spec)
        # Processes that a command starts look its functions up by this name.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    return int(module.main())


if __name__ == "__main__":
    sys.exit(main())
