#!/bin/bash
#SBATCH --job-name=ftcore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4     # one process a GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180       # to all processes, three minutes before the end of that time: the run is saved
#SBATCH --requeue
#SBATCH --open-mode=append

# RUN is on storage that all nodes see. A job that is queued again has its number still, and goes on with its run.
run=${RUN:-runs/$SLURM_JOB_ID}
if [ -f "$run/manifest.json" ]; then
    srun ftcore resume "$run"
else
    srun ftcore run config.toml --plugin ddp --set run.folder="$run"
fi
code=$?
if [ "$code" = 143 ]; then  # saved because its time was over
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
