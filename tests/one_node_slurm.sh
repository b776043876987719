#!/usr/bin/env bash
# Starts a SLURM cluster of this one machine in FOLDER, for tests: Debian's slurm-wlm and munge, as root,
# without systemd. All it writes is there, but for a missing line of /etc/hosts: no cluster of the
# machine's own, and nothing that a killed one left, is in its way. `SLURM_CONF=FOLDER/slurm.conf srun ...` uses it; the processes named in
# FOLDER/*.pid are it.
set -euo pipefail
folder=$1
name=$(hostname -s)
getent hosts "$name" >/dev/null || echo "127.0.0.1 $name" >>/etc/hosts
mkdir -p "$folder/state" "$folder/spool"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

cat >"$folder/slurm.conf" <<CONF
ClusterName=ehrr1_tests
SlurmctldHost=$name
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobRequeue=1
MaxArraySize=2000
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=$name CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=main Nodes=$name Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

# The folders above it are closed to other users, whom munged (without --force) would have let in.
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
slurmd
for _ in $(seq 30); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then exit 0; fi
  sleep 1
done
tail -n 20 "$folder"/*.log >&2
echo "no SLURM node became idle" >&2
exit 1
