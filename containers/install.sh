#!/bin/sh
# Install this repository, which lies beside this folder, into /opt/venv. PyTorch's smaller CPU build is taken if
# PIP_EXTRA_INDEX_URL is set to its address (PyTorch's installation page has it).
set -eu
cd "$(dirname "$0")/.."
python3 -m venv /opt/venv
/opt/venv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check -c constraints.txt -e .
# Notebooks and weights are read where they lie; whoever runs the container only reads.
chmod -R a+rX /opt/venv .
/opt/venv/bin/resolution-matters --version
