#!/usr/bin/env bash

#SBATCH -J resolution-matters
#SBATCH -e LOGS/resolution-matters-%J.err
#SBATCH -o LOGS/resolution-matters-%J.out
#SBATCH -p short
#SBATCH -A mylab
#SBATCH -n 1
#SBATCH --cpus-per-task=4
#SBATCH --mem=12G
#SBATCH -t 02:00:00
#SBATCH -X extra
module load python
PYTHON -m distributed.cli.dask_worker SCHEDULER --name dummy-name --nthreads 4 --memory-limit 11.18GiB --nanny --death-timeout 60 --nthreads 1
