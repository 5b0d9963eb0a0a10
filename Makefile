# Every target builds .venv first, and again when the dependencies change.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
STUDY ?= studies/demo.toml
BOOK ?= studies/book.toml

.PHONY: help demo study results figures lint test test-slow bench lab app handout book
.DEFAULT_GOAL := help

help:  ## this list
	@$(PYTHON) -c 'import re, sys; print(*(f"{name:12} {what}" for name, what in re.findall("^([a-z-]+):.*## *(.*)", open(sys.argv[1]).read(), re.M)), sep="\n")' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): accepted are Python 3.11 to 3.13; try: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[notebooks,test]'
	@touch $@

demo: $(STAMP)  ## the study on ten simulated subjects, as a preview
	$(BIN)/resolution-matters run studies/demo.toml

study: $(STAMP)  ## another study: make study STUDY=studies/mine.toml
	$(BIN)/resolution-matters run $(STUDY)

results: $(STAMP)  ## the study of figures/ten, its controls and remedies again, from nothing: hours; stop and go on as you like
	for name in demo demo-none demo-histogram remedies gaps clinic-none clinic-histogram clinic ten-coronal ten-sagittal ten ten-union ten-argmax ladder-rigid ladder-affine ladder whole; do \
	  $(BIN)/resolution-matters run studies/$$name.toml || exit 1; \
	done
	$(BIN)/resolution-matters compare studies/demo.toml studies/demo-histogram.toml studies/demo-none.toml
	$(BIN)/python figures/ten/why.py
	$(BIN)/python figures/super_resolution/gains.py
	$(MAKE) figures

figures:  ## for maintainers: copy what the README shows, of results that are computed, into figures/
	for name in demo ten; do cp data/derivatives/$$name/figures/* figures/$$name/; done
	cp $(addprefix data/derivatives/remedies/figures/,figure_remedies.* remedies*.csv scores.csv) figures/remedies/
	cp $(addprefix data/derivatives/gaps/figures/,figure_claims.* scores.csv) figures/gaps/
	cp $(addprefix data/derivatives/clinic/figures/,figure_agreement.* figure_lesions.* agreement.csv verdicts_downstream.csv) figures/clinic/
	for name in histogram none; do cp data/derivatives/clinic-$$name/figures/agreement.csv figures/clinic/$$name.csv; done
	for file in data/derivatives/demo/figures/scaling.*; do [ ! -e "$$file" ] || cp "$$file" figures/; done

lint: $(STAMP)  ## ruff's rules and format, as before a commit (`pre-commit install` runs them there)
	$(BIN)/pre-commit run --all-files

test: $(STAMP)  ## the tests, the slow ones apart
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)  ## the slow tests
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile --no-loadscope-reorder

bench: $(STAMP)  ## speed as ratios, measured in one process
	$(BIN)/python tests/bench.py

lab: $(STAMP)  ## the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

app: $(STAMP)  ## the lab meeting, in a browser; needs no network
	JUPYTER_PATH=$(CURDIR)/share/jupyter $(BIN)/voila --template=offline notebooks/07_lab_meeting.ipynb

handout: $(STAMP)  ## slice profiles and lab meeting as pages for those who missed them, in data/derivatives/handout
	@mkdir -p data/derivatives/handout
	for name in 01_slice_profiles 07_lab_meeting; do \
	  $(BIN)/papermill --log-level WARNING --no-progress-bar notebooks/$$name.ipynb data/derivatives/handout/$$name.ipynb -p interactive False && \
	  $(BIN)/jupyter nbconvert --log-level WARN --to html --embed-images data/derivatives/handout/$$name.ipynb || exit 1; \
	done

book: $(STAMP)  ## the pages with the executed notebooks, in docs/_build/html; BOOK=studies/ten.toml shows another study
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book]'
	$(BIN)/python docs/execute.py $(BOOK)
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"
