#!/usr/bin/env bash
# Starts a Slurm for the tests on the loopback interface: munged, slurmctld and N nodes of 64 made-up cores and 8
# made-up GPUs. All that it writes lies in DIRECTORY; it listens on the ports PORT (slurmctld) to PORT+N (the nodes).
#
#     bash tests/launchers/slurm/start_slurm.sh [--hold] DIRECTORY [PORT [NODES]]
#     export SLURM_CONF=DIRECTORY/slurm.conf
#
# With --hold it stays, starts slurmctld again for every line "slurmctld" that it reads, and stops all at the end of
# its input. Exit code 77: this machine cannot, and the last line says why.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
hold=
if [[ ${1:-} == --hold ]]; then
    hold=yes
    shift
fi
root=${1:?the directory for everything is missing}
port=${2:-18000}
nodes=${3:-8}
gpus=8
PATH=$PATH:/usr/sbin:/sbin

cannot() {
    echo "$1" >&2
    exit 77
}

missing() {
    local program
    for program in munged mungekey slurmctld slurmd srun sbatch squeue scancel scontrol sinfo; do
        command -v "$program" >/dev/null || echo "$program"
    done
}

if [[ $(missing) && $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
    {
        timeout 120 apt-get update &&
            DEBIAN_FRONTEND=noninteractive timeout 240 \
                apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
    } >/dev/null 2>&1 || true
fi
if [[ $(missing) ]]; then
    cannot "no $(missing | tr '\n' ' ')here; as root: apt-get install slurmctld slurmd slurm-client munge"
fi
host=$(hostname -s)
address=$(getent ahostsv4 "$host" | awk 'NR == 1 {print $1}')
[[ $address == 127.* ]] ||
    cannot "the name of this machine, $host, is ${address:-no address}; Slurm on one machine needs 127.0.1.1 in /etc/hosts"

mkdir -p "$root"/{munge,run,log,gpus,spool,state,broken}
root=$(cd -- "$root" && pwd)
chmod 755 "$root" "$root/munge"
chmod 700 "$root/state"
for file in "$root"/run/*.pid; do
    if [[ -s $file && $(cat "/proc/$(cat "$file")/comm" 2>/dev/null) =~ ^(munged|slurmctld|slurmd)$ ]]; then
        echo "a Slurm is at work in $root; stop_slurm.sh ends it" >&2
        exit 1
    fi
done
# A GPU must be a character device, or Slurm leaves CUDA_VISIBLE_DEVICES empty.
for ((gpu = 0; gpu < gpus; gpu++)); do
    ln -sfn /dev/null "$root/gpus/nvidia$gpu"
done
for ((node = 1; node <= nodes; node++)); do
    mkdir -p "$root/spool/node$node"
done

# A node whose name is in broken/ starts no job, and no node one whose number is there.
cat >"$root/prolog" <<END
#!/bin/sh
test ! -e "$root/broken/\$SLURMD_NODENAME" -a ! -e "$root/broken/\$SLURM_JOB_ID"
END
chmod 755 "$root/prolog"

export SLURM_CONF=$root/slurm.conf
user=$(id -un)
cat >"$root/gres.conf" <<END
AutoDetect=off
NodeName=node[1-$nodes] Name=gpu File=$root/gpus/nvidia[0-$((gpus - 1))]
END
cat >"$SLURM_CONF" <<END
# Who and where.
ClusterName=tests
SlurmUser=$user
SlurmdUser=$user
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for as long as its old credential is good, and a second.
AuthInfo=socket=$root/munge/socket,cred_expire=5
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/%n.log
MailProg=/bin/true
# No cgroups and no accounts: what is finished stands in log/jobs.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$root/log/jobs
Prolog=$root/prolog
# Quick, for nobody waits in a test.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
KillWait=3
# The machine may be busy with other tests.
MessageTimeout=30
# An srun that starts while slurmctld is away asks again only after this time, or 60 s if that is longer.
SlurmctldTimeout=60
ReturnToService=1
MaxArraySize=1001
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerCPU=100
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=64 Sockets=2 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=2000000 Gres=gpu:$gpus
NodeName=node[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1))-$((port + nodes))
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE
PartitionName=main Nodes=ALL PriorityTier=2 PreemptMode=REQUEUE Default=YES
PartitionName=high Nodes=ALL PriorityTier=3 PreemptMode=OFF
PartitionName=short Nodes=ALL PriorityTier=2 MaxTime=00:10:00
END

if [[ ! -s $root/munge/key ]]; then
    mungekey --create --keyfile="$root/munge/key"
fi
trap 'bash "$here/stop_slurm.sh" "$root"' ERR
munged --key-file="$root/munge/key" --socket="$root/munge/socket" --seed-file="$root/munge/seed" \
    --pid-file="$root/run/munged.pid" --log-file="$root/log/munged.log"
slurmctld
for ((node = 1; node <= nodes; node++)); do
    slurmd -N "node$node"
done
for ((try = 0; try < 600; try++)); do
    if (($(sinfo --noheader --Node --partition=main --states=idle --format=%N 2>/dev/null | wc -l) == nodes)); then
        echo "slurm is up: $nodes nodes"
        break
    fi
    sleep 0.1
done
((try < 600)) || {
    echo "the nodes did not come up in 60 s; $root/log says more" >&2
    bash "$here/stop_slurm.sh" "$root"
    exit 1
}

if [[ $hold ]]; then
    # Ctrl-C and the like reach the whole group; the end of the input is what ends this.
    trap '' INT TERM HUP
    while read -r line; do
        [[ $line != slurmctld ]] || slurmctld
    done
    bash "$here/stop_slurm.sh" "$root"
fi
