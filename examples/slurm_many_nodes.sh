#!/usr/bin/env bash
# Several nodes, a process for each GPU: sbatch examples/slurm_many_nodes.sh cfg.yaml
#SBATCH --job-name=hookloop
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# The run stops by itself ten minutes before --time is over, its state saved, and answers 75. scancel stops it too: 143.
set -uo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# RANK and so on are what torchrun would set; so Slurm itself starts and watches every process. A process that has lost
# another ends by itself with the code of the first: Slurm must not end it with a signal before.
# shellcheck disable=SC2016  # each process has its own numbers
srun --kill-on-bad-exit=0 --wait=60 bash -c \
  'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec hookloop run "$@"' \
  run --set run.time_limit="${TIME_LIMIT:-23h50m}" "$@"
code=$?

if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
