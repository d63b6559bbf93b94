#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# A training under SLURM that goes on where it was until it is done:
#   sbatch slurm.sh /shared/runs/imagenet corsd train --preset imagenet --data imagefolder:/data/imagenet
# Two minutes before its time is up SLURM sends SIGTERM; the run saves and ends, and the job queues itself again.
set -eu
out=$1 program=$2 verb=$3
shift 3
if [ -f "$out/config.yaml" ]; then
    set -- --resume "$out"
else
    set -- "$@" --out "$out"
fi
# torchrun would kill processes that are still saving after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
code=0
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --rdzv-backend c10d \
    --rdzv-endpoint "$host:29500" --rdzv-id "$SLURM_JOB_ID" --no-python "$program" "$verb" "$@" || code=$?
# A run that fails every time must not come back for ever.
if [ ! -f "$out/result.json" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
