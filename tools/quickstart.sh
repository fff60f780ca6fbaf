#!/usr/bin/env bash
# Set up the environment, then run the whole path on the embedded data set:
# data, proposals, distillation, two detectors, evaluation, pictures.
# Arguments go to tools/quickstart.py; see --help there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$(bash tools/setup_env.sh --python)"
exec "$python" tools/quickstart.py "$@"
