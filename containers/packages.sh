#!/bin/sh
# What Debian 12 needs, as root: Python, a C++ compiler for the fast convolutions, and what `make` and git need.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends ca-certificates g++ git make python3 python3-venv
rm -rf /var/lib/apt/lists/*
