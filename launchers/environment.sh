# shellcheck shell=bash
# shellcheck disable=SC2034  # emergence_python is for the script that sources this
# For bash scripts to source: `emergence_environment ROOT` sets `emergence_python` to the interpreter of the
# project's environment, ROOT/.venv or $EMERGENCE_VENV, which launchers/environment.py makes the first time.
# A stamp with the checksum of pyproject.toml says that it is whole.

emergence_environment() {
    local root=$1 venv=${EMERGENCE_VENV:-$1/.venv} wanted candidate
    emergence_python=$venv/bin/python
    wanted=$(sha256sum <"$root/pyproject.toml")
    if [[ "$(cat "$venv/.emergence-stamp" 2>/dev/null)" == "${wanted%% *}" ]]; then
        return 0
    fi
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            "$candidate" "$root/launchers/environment.py" "$root" "$venv" || exit
            return 0
        fi
    done
    printf 'error: there is no Python 3.11; Debian 12: apt-get install python3.11 python3.11-venv; %s\n' \
        'Ubuntu: the same after add-apt-repository ppa:deadsnakes/ppa' >&2
    exit 2
}
