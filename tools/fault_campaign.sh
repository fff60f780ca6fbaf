#!/usr/bin/env bash
# Run the campaign of faults (kills, bad inputs, attacks) and print its figures.
# Arguments go to clipself_d2/apps/reliability/campaign.py; see --help there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-$(bash tools/setup_env.sh --python)}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m clipself_d2.apps.reliability.campaign "$@"
