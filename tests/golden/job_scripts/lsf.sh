#!/usr/bin/env bash

#BSUB -J resolution-matters
#BSUB -e LOGS/dummy-name-%J.err
#BSUB -o LOGS/dummy-name-%J.out
#BSUB -q short
#BSUB -P "mylab"
#BSUB -n 4
#BSUB -R "span[hosts=1]"
#BSUB -M 12000000
#BSUB -W 02:00
#BSUB -X extra
module load python
PYTHON -m distributed.cli.dask_worker SCHEDULER --name dummy-name --nthreads 4 --memory-limit 11.18GiB --nanny --death-timeout 60 --nthreads 1
