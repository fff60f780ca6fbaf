#!/usr/bin/env bash
# Set up the environment, then run the whole path on the embedded data set:
# data, proposals, distillation, two detectors, evaluation, pictures.
# Arguments go to tools/quickstart.py; see --help there.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup_env.sh
if [ "${CLIPSELF_D2_NO_VENV:-0}" = "1" ]; then python=python; else python=.venv/bin/python; fi
exec "$python" tools/quickstart.py "$@"
