#!/bin/bash
# qsub examples/launch/pbs.sh       (qsub -F "…" or -- … for options of fit, as your PBS has it)
#
# mpirun reads machines and numbers of ranks from PBS_NODEFILE, which has a line for each rank, and starts its
# daemons by ssh: logins between the job's machines must need no password.
#PBS -N pycomm
#PBS -l select=2:ncpus=8:mpiprocs=4
#PBS -l walltime=01:00:00
#PBS -j oe

set -euo pipefail
cd "${PBS_O_WORKDIR:-.}"
exec python -m pycomm.launch -n "$(wc -l < "$PBS_NODEFILE")" -m trainer fit \
  --data mnist5k --model mlp --epochs 20 --threads 2 \
  --save_every 100 --resume auto --out runs/pbs "$@"
