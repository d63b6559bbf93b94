#!/bin/sh
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Many objects on many GPUs, one process each:
#   sbatch slurm_generate.sh /shared/runs/furniture "a chair" "a table" --prior PATH --seeds 0-15
# The processes share the objects through locks in the folder, which all must see; when one dies, another takes its
# object over at the last checkpoint.  The first writes the result and the report.  Submit it again to go on.
set -eu
out=$1
shift
export RANK="$SLURM_ARRAY_TASK_ID"
if [ "$RANK" = 0 ] && [ -f "$out/config.yaml" ]; then
    exec fsd generate --resume "$out"
fi
exec fsd generate "$@" --out "$out"
