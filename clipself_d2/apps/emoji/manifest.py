"""The manifest of a written data set: what it was made with and the hash of every file.

It is written last and in one step, so a folder without a valid manifest is never trusted.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

MANIFEST = "manifest.json"

Options = Mapping[str, int | bool | str]


def write_manifest(folder: Path, options: Options, files: Iterable[Path]) -> None:
    """Hash files below a data set's folder and vouch for them."""
    hashes = {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(files)}
    text = json.dumps({"options": dict(options), "sha256": hashes}, indent=0)
    # Renamed when whole: a cut manifest would vouch for nothing, but look damaged.
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, folder / MANIFEST)


def find_problem(folder: Path, options: Options) -> str | None:
    """Say as a clause what is wrong with a folder; None if it is as written, with these options."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{path} is missing"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        written, hashes = dict(manifest["options"]), dict(manifest["sha256"])
    except (ValueError, KeyError, TypeError):
        return f"{path} is damaged"
    keys = sorted(written.keys() | options.keys())
    changed = [key for key in keys if written.get(key) != options.get(key)]
    if changed:
        return "made with other options: " + ", ".join(
            f"{key} is {written.get(key)}, wanted {options.get(key)}" for key in changed
        )
    for name, expected in hashes.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if _sha256(folder / name) != expected:
            return f"{folder / name} is damaged"
    return None


def fingerprint(files: Iterable[Path]) -> str:
    """Hash the contents of files, in the order given, to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
