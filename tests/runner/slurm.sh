#!/usr/bin/env bash
# A real SLURM on this one host, as root, without cgroups: for tests/runner/test_slurm.py.
#   slurm.sh start FOLDER   everything it needs and writes lies in FOLDER; then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER
set -euo pipefail
folder=$2
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin

if [ "$1" = stop ]; then
  for daemon in slurmd slurmctld munged; do
    if [ -s "$folder/$daemon.pid" ]; then kill "$(cat "$folder/$daemon.pid")" 2> /dev/null || true; fi
  done
  exit 0
fi

host=$(hostname -s)
mkdir -p "$folder"/{state,spool}
chmod 755 "$folder"
# munged insists on a key that nobody else can read.
(umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none)
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

cat > "$SLURM_CONF" << END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
END

slurmctld
slurmd
for _ in $(seq 60); do
  if sinfo --noheader --format=%T 2> /dev/null | grep -q idle; then exit 0; fi
  sleep 0.5
done
echo "SLURM did not start:" >&2
tail -n 5 "$folder"/slurmctld.log "$folder"/slurmd.log >&2
exit 1
