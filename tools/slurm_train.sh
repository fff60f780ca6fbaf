#!/usr/bin/env bash
# Train on several machines under Slurm, one process a GPU.
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 1 tools/slurm_train.sh \
#     tools/distill_train_net.py --config-file configs/distill/clipself_coco_patches_eva02_b16.yaml
#
# Every machine starts torchrun, which starts one process for each of its GPUs; the first machine of
# the job is where they meet. CLIPSELF_D2_PORT changes the port.
#SBATCH --job-name=clipself_d2
#SBATCH --cpus-per-task=32
#SBATCH --signal=TERM@120
set -euo pipefail

if [ "$#" = 0 ] || [ "${1:-}" = "--help" ]; then
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi
if [ -z "${SLURM_JOB_NODELIST:-}" ]; then
  echo "error: SLURM_JOB_NODELIST is not set; submit this script with sbatch" >&2
  exit 1
fi
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
processes="${SLURM_GPUS_ON_NODE:-1}"
exec srun --kill-on-bad-exit=1 python -m torch.distributed.run \
  --nnodes "${SLURM_JOB_NUM_NODES:-1}" \
  --nproc-per-node "$processes" \
  --rdzv-backend c10d \
  --rdzv-id "${SLURM_JOB_ID:-0}" \
  --rdzv-endpoint "$head_node:${CLIPSELF_D2_PORT:-29500}" \
  "$@"
