#!/usr/bin/env bash
# Set up the environment if it is not there, then lint, check types, build the pages and run the tests.
#
#   bash tools/test.sh                     everything
#   bash tools/test.sh tests/layers -x     arguments go to pytest
#
# CLIPSELF_D2_NO_VENV=1 uses the active environment (see tools/setup_env.sh).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

python="$(bash tools/setup_env.sh --python)" || exit 1
echo "== environment: $python"
started=$SECONDS
summary=""
failed=0

stage() {
  local name="$1" begun=$SECONDS verdict=ok
  shift
  echo "== $name"
  "$@" || { verdict="FAILED"; failed=1; }
  summary+="$(printf '%-14s %-7s %5d s' "$name" "$verdict" $((SECONDS - begun)))"$'\n'
}

# Two processes with one thread each beat one process with two on arrays as small as the tests'.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
stage "ruff check" "$python" -m ruff check .
stage "ruff format" "$python" -m ruff format --check .
stage "mypy" "$python" -m mypy
stage "docs" "$python" -m mkdocs build --strict --quiet
stage "pytest" "$python" -m pytest --numprocesses 2 --dist loadfile \
  --no-loadscope-reorder "$@"

echo "== summary"
printf '%s' "$summary"
if [ "$failed" = 0 ]; then verdict="all passed"; else verdict="FAILED"; fi
echo "$verdict in $((SECONDS - started)) s"
exit "$failed"
