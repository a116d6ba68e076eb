#!/usr/bin/env bash
# Trains and evaluates a grid of models and writes the report. The first time it also sets up .venv.
#
#     bash launchers/slurm_grid.sh
#     bash launchers/slurm_grid.sh --grid recipes/grids/realtext.yaml --corpus DIR --benchmarks DIR
#     bash launchers/slurm_grid.sh --help
#
# All it does beyond that is in launchers/grid.py, where it is tested.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launchers/environment.sh
source "$root/launchers/environment.sh"
emergence_environment "$root"

# The code is this checkout's, wherever it is called from and whichever checkout EMERGENCE_VENV was made for.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$emergence_python" -P -m launchers.grid "$@"
