#!/usr/bin/env bash
# One node and all its GPUs, for as many jobs as it takes: sbatch examples/slurm.sh cfg.yaml
#SBATCH --job-name=hookloop
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# Put your partition and account above and your environment (module load ..., source .../bin/activate) below; paths in cfg.yaml are
# relative to where sbatch is called. --cpus-per-task: about 8 for each GPU, for the processes that read.
# --signal: three minutes before the end Slurm tells this script, which stops the run; it saves its state and answers 143.
set -uo pipefail

hookloop run --nproc "${NPROC:-auto}" "$@" &
run=$!
over=
# shellcheck disable=SC2064  # the number of the process is known now
trap "over=yes; kill -TERM $run" USR2
# shellcheck disable=SC2064
trap "kill -TERM $run" TERM INT # scancel, or Slurm takes the node for another job, which it then queues again itself
# shellcheck disable=SC2064
trap "kill -USR1 $run" USR1 # scancel --signal=USR1 --batch: save now and go on

while kill -0 "$run" 2>/dev/null; do # a signal to this script ends its wait, not the run
  wait "$run"
done
wait "$run"
code=$?

if [ "$code" -eq 75 ] || { [ "$code" -eq 143 ] && [ -n "$over" ]; }; then
  scontrol requeue "$SLURM_JOB_ID" # out of time, its state saved: the same command goes on
fi
exit "$code"
