#!/usr/bin/env bash
# Sets up the environment as launchers/slurm_grid.sh does, checks the style and runs the tests.
#
#     bash tests/run.sh                    # all but the slow ones
#     bash tests/run.sh tests/launchers    # any arguments of pytest
#     bash tests/run.sh -m slow            # the slow ones; makes NeMo's environment for them, .venv-nemo
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launchers/environment.sh
source "$root/launchers/environment.sh"
emergence_environment "$root"
if [[ "$*" == *"-m slow"* ]]; then
    emergence_environment "$root" nemo
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
cd "$root"

"$emergence_python" -m ruff check .
"$emergence_python" -m ruff format --check .
status=0
# A worker a core; tests of one file stay together, for they share what they train.
"$emergence_python" -m pytest --numprocesses auto --dist loadfile "$@" || status=$?
# 5: nothing was selected. That is no failure where all that is asked for is the slow tests.
if ((status == 5)) && [[ "$*" == "-m slow" ]]; then
    status=0
fi
exit "$status"
