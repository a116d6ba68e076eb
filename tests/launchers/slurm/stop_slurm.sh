#!/usr/bin/env bash
# Ends the Slurm that start_slurm.sh started in DIRECTORY: its jobs, their processes, its daemons. Nothing else.
#
#     bash tests/launchers/slurm/stop_slurm.sh DIRECTORY
set -uo pipefail

root=$(cd -- "${1:?the directory of the cluster is missing}" && pwd) || exit
export SLURM_CONF=$root/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

is_alive() { # PID
    local status
    status=$(sed -n 's/^State:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null)
    [[ $status && $status != Z* ]]
}

end_daemon() { # FILE NAME: by the process id in FILE, if it is still that daemon
    local pid try
    [[ -s $1 ]] || return 0
    pid=$(cat "$1")
    if [[ $pid && $(cat "/proc/$pid/comm" 2>/dev/null) == "$2" ]]; then
        kill -TERM "$pid" 2>/dev/null
        for ((try = 0; try < 100; try++)); do
            is_alive "$pid" || break
            sleep 0.05
        done
        is_alive "$pid" && kill -KILL "$pid"
    fi
    rm -f "$1"
}

# What is in the environment of this cluster's jobs, and of nothing else: the cluster, and a job.
kill_job_processes() {
    local directory
    for directory in /proc/[0-9]*; do
        if grep -qzxF "SLURM_CONF=$SLURM_CONF" "$directory/environ" 2>/dev/null &&
            grep -qz '^SLURM_JOB_ID=' "$directory/environ" 2>/dev/null; then
            kill -KILL "${directory#/proc/}" 2>/dev/null
        fi
    done
}

jobs() {
    timeout 5 squeue --noheader --format=%A "$@" 2>/dev/null | sort -u
}

if [[ -e $root/run/slurmctld.pid ]]; then
    mapfile -t ids < <(jobs)
    if ((${#ids[@]})); then
        timeout 10 scancel "${ids[@]}" 2>/dev/null
        kill_job_processes
        for ((try = 0; try < 60; try++)); do
            [[ $(jobs --states=running,completing) ]] || break
            sleep 0.1
        done
    fi
fi
for file in "$root"/run/node*.pid; do
    [[ ! -e $file ]] || end_daemon "$file" slurmd
done
end_daemon "$root/run/slurmctld.pid" slurmctld
end_daemon "$root/run/munged.pid" munged
kill_job_processes
exit 0
