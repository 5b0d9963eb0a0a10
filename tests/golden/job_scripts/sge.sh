#!/usr/bin/env bash

#$ -N resolution-matters
#$ -q short
#$ -P mylab
#$ -l h_rt=02:00:00
#$ -e LOGS/
#$ -o LOGS/
#$ -cwd
#$ -j y
#$ -X extra
module load python
PYTHON -m distributed.cli.dask_worker SCHEDULER --name dummy-name --nthreads 4 --memory-limit 11.18GiB --nanny --death-timeout 60 --nthreads 1
