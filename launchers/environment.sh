# shellcheck shell=bash
# shellcheck disable=SC2034  # emergence_python and emergence_nemo_python are for the script that sources this
# For bash scripts to source. launchers/environment.py makes an environment the first time; a stamp with the checksum
# of pyproject.toml says that it is whole.
#
#   emergence_environment ROOT         sets emergence_python: that of ROOT/.venv or $EMERGENCE_VENV
#   emergence_environment ROOT nemo    sets emergence_nemo_python: that of ROOT/.venv-nemo or $EMERGENCE_NEMO_VENV

emergence_environment() {
    local root=$1 kind=${2:-default} venv wanted candidate
    if [[ $kind == nemo ]]; then
        venv=${EMERGENCE_NEMO_VENV:-$root/.venv-nemo}
        emergence_nemo_python=$venv/bin/python
    else
        venv=${EMERGENCE_VENV:-$root/.venv}
        emergence_python=$venv/bin/python
    fi
    wanted=$(sha256sum <"$root/pyproject.toml")
    if [[ "$(cat "$venv/.emergence-stamp" 2>/dev/null)" == "${wanted%% *}" ]]; then
        return 0
    fi
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            "$candidate" "$root/launchers/environment.py" "$root" "$venv" "$kind" || exit
            return 0
        fi
    done
    printf 'error: there is no Python 3.11; Debian 12: apt-get install python3.11 python3.11-venv; %s\n' \
        'Ubuntu: the same after add-apt-repository ppa:deadsnakes/ppa' >&2
    exit 2
}
