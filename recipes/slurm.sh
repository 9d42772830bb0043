#!/bin/bash
# Trains with gptcli on several machines under Slurm, and continues after a pre-emption.
#
#   sbatch recipes/slurm.sh CONFIG RUN [KEY=VALUE ...]
#
# CONFIG, the text and RUN must be on a file system that all nodes share. The first start begins the
# training. Every later start resumes RUN from its newest checkpoint. Adapt the #SBATCH lines.
#
#SBATCH --job-name=gptcli
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300

set -euo pipefail

config=${1:?name a config}
run=${2:?name the run folder}
shift 2

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
if [[ -f "$run/config.yaml" ]]; then
    words=(train --resume --out "$run")
else
    words=(train "$config" "$@" --out "$run")
fi

# Slurm sends SIGTERM before it pre-empts the job, and five minutes before the job reaches its time
# limit. Then all ranks save and end, and this script puts the job back into the queue.
asked_to_stop=no
# shellcheck disable=SC2317,SC2329 # the trap calls this function
stop() {
    asked_to_stop=yes
    kill -TERM "$training" 2> /dev/null || true
}
trap stop TERM

srun --kill-on-bad-exit=1 torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc-per-node="${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$head:29500" \
    --max-restarts=3 \
    -m gptcli "${words[@]}" &
training=$!

code=0
wait "$training" || code=$?
if [[ $asked_to_stop == yes ]]; then
    wait "$training" || true # the first wait ended with the signal, not with the training
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
