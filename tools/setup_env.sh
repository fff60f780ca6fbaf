#!/usr/bin/env bash
# Make this project's Python environment, or bring it up to date. Safe to call at any time: when
# nothing has changed since the last call it ends at once.
#
#   bash tools/setup_env.sh             .venv in the project's folder
#   bash tools/setup_env.sh --python    the same; stdout carries the interpreter's path and no more
#
#   PYTHON=python3.11          the interpreter to make .venv with (3.10 to 3.12)
#   CLIPSELF_D2_NO_VENV=1      use the active environment; packages it has already are kept
set -euo pipefail

readonly DETECTRON2_WHEEL="sal-detectron2==0.7.2"
readonly DETECTRON2_SHA256="491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
readonly DETECTRON2_SOURCE="git+https://github.com/facebookresearch/detectron2.git"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
no_venv="${CLIPSELF_D2_NO_VENV:-0}"
python_only=0
case "${1:-}" in
  "") ;;
  --python) python_only=1 ;;
  *) echo "setup_env.sh: unknown argument $1; there is --python only" >&2; exit 2 ;;
esac
if [ "$python_only" = 1 ]; then exec 3>&1 1>&2; else exec 3>/dev/null; fi

say() { printf '== %s\n' "$*"; }
fail() { printf 'setup_env.sh: %s\n' "$*" >&2; exit 1; }

is_supported() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

# The interpreter's own path, from the names given.
first_supported() {
  local name
  for name in "$@"; do
    if is_supported "$name"; then "$name" -c 'import sys; print(sys.executable)'; return 0; fi
  done
  return 1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    first_supported "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12; name" \
      "one that is, or leave PYTHON unset to have one looked for"
  elif [ "$no_venv" = 1 ]; then
    first_supported python3 python || fail "the active environment has no Python 3.10, 3.11 or" \
      "3.12; activate one that has, or unset CLIPSELF_D2_NO_VENV to have .venv made"
  else
    first_supported python3 python3.12 python3.11 python3.10 || fail "no Python 3.10, 3.11 or" \
      "3.12 found; install one (Debian, Ubuntu: apt install python3 python3-venv) or name it:" \
      "PYTHON=/path/to/python3.11 bash tools/setup_env.sh"
  fi
}

make_venv() {
  local base
  base="$(find_python)"
  say "making .venv with $("$base" --version)"
  "$base" -m venv --clear .venv || fail "could not make .venv; install Python's venv module" \
    "(Debian, Ubuntu: apt install python3-venv), or activate an environment of your own and" \
    "call CLIPSELF_D2_NO_VENV=1 bash tools/setup_env.sh"
}

# What the environment depends on: the files that define it, where it lies, and what is in it now.
# Run from / so that this folder is not on Python's path.
fingerprint() {
  (cd / && "$python" - "$root") <<'PYTHON_CODE'
import hashlib
import re
import sys
from importlib import metadata, util
from pathlib import Path

root = Path(sys.argv[1])
digest = hashlib.sha256(f"{root} {sys.prefix} {sys.version}".encode())
constraints = (root / "tools/constraints.txt").read_text(encoding="utf-8")
for name in ("setup.py", "tools/constraints.txt", "tools/setup_env.sh"):
    digest.update((root / name).read_bytes())
names = {"clipself_d2", *re.findall(r"^([\w.-]+)==", constraints, re.MULTILINE)}
installed = {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in metadata.distributions()}
for name in sorted(re.sub(r"[-_.]+", "-", n).lower() for n in names):
    digest.update(f"{name}={installed.get(name)} ".encode())
digest.update(str(util.find_spec("detectron2") is None).encode())
print(digest.hexdigest())
PYTHON_CODE
}

# The pins; for the active environment without those of packages that it has already, and without
# those of torch and torchvision, which have to match each other, if it has one of the two.
write_constraints() {
  (cd / && "$python" - "$root" "$no_venv" "$1") <<'PYTHON_CODE'
import re
import sys
from importlib import metadata
from pathlib import Path

root, keep_installed, target = Path(sys.argv[1]), sys.argv[2] == "1", Path(sys.argv[3])
kept = set()
if keep_installed:
    kept = {re.sub(r"[-_.]+", "-", d.name).lower() for d in metadata.distributions()}
    if kept & {"torch", "torchvision"}:
        kept |= {"torch", "torchvision"}
lines = (root / "tools/constraints.txt").read_text(encoding="utf-8").splitlines()
lines = [line for line in lines if line.partition("==")[0] not in kept]
lines.append("setuptools<81")
target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
PYTHON_CODE
}

has_module() {
  (cd / && "$python" - "$1") <<'PYTHON_CODE'
import sys
from importlib import util

spec = util.find_spec(sys.argv[1])
sys.exit(spec is None or spec.origin is None)
PYTHON_CODE
}

pip() {
  "$python" -m pip --disable-pip-version-check "$@" || fail "pip failed, its message is above;" \
    "check the network and the free space (about 12 GB while it installs), then call me again"
}

pip_install() { pip install --no-warn-conflicts --constraint "$scratch/constraints.txt" "$@"; }

install_detectron2() {
  if has_module detectron2; then
    say "5/5 detectron2: there already, left as it is"
    return
  fi
  say "5/5 detectron2: $DETECTRON2_WHEEL"
  # The wheel is tagged for Python 3.10. Its Python code runs on 3.11 and 3.12 too, and nothing
  # here needs its compiled part; pip takes such a wheel with --target only.
  local target
  target="$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  printf '%s --hash=sha256:%s\n' "$DETECTRON2_WHEEL" "$DETECTRON2_SHA256" > "$scratch/detectron2.txt"
  "$python" -m pip --disable-pip-version-check install --quiet --target "$target" \
    --python-version 3.10 --only-binary=:all: --no-deps --require-hashes \
    --requirement "$scratch/detectron2.txt" ||
    fail "could not install $DETECTRON2_WHEEL; where there is no wheel for this machine, build" \
      "Detectron2 and call me again: $python -m pip install --no-build-isolation '$DETECTRON2_SOURCE'"
}

install_all() {
  scratch="$(mktemp -d)"
  trap 'rm -rf "$scratch"' EXIT
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 ||
    fail "$python has no pip; install it (Debian, Ubuntu: apt install python3-pip)"
  write_constraints "$scratch/constraints.txt"
  export PIP_DEFAULT_TIMEOUT="${PIP_DEFAULT_TIMEOUT:-60}" PIP_RETRIES="${PIP_RETRIES:-10}"
  say "1/5 setuptools"
  pip_install --quiet "setuptools<81" wheel
  say "2/5 torch and torchvision (the first time 5 GB on disk; some minutes)"
  pip_install torch torchvision
  say "3/5 clipself_d2 and its dependencies"
  # The few source packages among them are built with the setuptools of the first step.
  pip_install --quiet --no-build-isolation --editable ".[dev,docs]"
  # lvis asks for opencv-python, which would lie over the headless build and needs libGL.
  say "4/5 lvis"
  has_module lvis || pip_install --quiet --no-deps lvis
  install_detectron2
}

if [ "$no_venv" = 1 ]; then
  python="$(find_python)"
  stamp="build/setup_env.stamp"
else
  python="$root/.venv/bin/python"
  stamp=".venv/setup_env.stamp"
  if [ ! -f "$stamp" ]; then
    # A first call, or one that was interrupted: a half-made .venv is made anew.
    if ! is_supported "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then make_venv; fi
  elif ! is_supported "$python"; then
    make_venv
  fi
fi

if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$(fingerprint)" ]; then
  if [ "$python_only" = 0 ]; then
    tail -n +2 "$stamp"
    say "ready, nothing to do: $python"
  fi
else
  rm -f "$stamp"
  install_all
  report="$("$python" -m clipself_d2.doctor)" || {
    printf '%s\n' "$report"
    fail "the environment does not work yet; every line with FAIL says what mends it"
  }
  printf '%s\n' "$report"
  mkdir -p "$(dirname "$stamp")"
  { fingerprint; printf '%s\n' "$report" | grep '^ok'; } > "$stamp.new"
  mv "$stamp.new" "$stamp"
  say "ready: $python"
fi
printf '%s\n' "$python" >&3
