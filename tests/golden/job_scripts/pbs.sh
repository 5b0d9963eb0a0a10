#!/usr/bin/env bash

#PBS -N resolution-matters
#PBS -q short
#PBS -A mylab
#PBS -l select=1:ncpus=4:mem=12GB
#PBS -l walltime=02:00:00
#PBS -e LOGS/
#PBS -o LOGS/
#PBS -X extra
module load python
PYTHON -m distributed.cli.dask_worker SCHEDULER --name dummy-name --nthreads 4 --memory-limit 11.18GiB --nanny --death-timeout 60 --nthreads 1
