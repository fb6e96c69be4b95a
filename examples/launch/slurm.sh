#!/bin/bash
# sbatch examples/launch/slurm.sh [options of fit]      e.g. --strategy zero1 --out /shared/runs/x
#
# mpirun takes machines and numbers of ranks from Slurm, and starts its daemons with srun: no ssh, no hostfile.
# A job that ran out of time, or lost a machine, goes on from its last checkpoint when it is submitted again.
#SBATCH --job-name=pycomm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4      # ranks of each machine
#SBATCH --cpus-per-task=2        # compute threads of each rank
#SBATCH --time=01:00:00

set -euo pipefail
exec python -m pycomm.launch -n "$SLURM_NTASKS" -m trainer fit \
  --data mnist5k --model mlp --epochs 20 --threads "${SLURM_CPUS_PER_TASK:-1}" \
  --save_every 100 --resume auto --out runs/slurm "$@"
