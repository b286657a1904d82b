# One entry point: every target sets up what it needs on a bare machine (Python 3.11, pip, apt) and runs.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Twice the threads on a busy machine is many times slower: one thread each, unless somebody says otherwise.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

FOLDERS := models engines editors steerers evaluation service miniature benches tests

.PHONY: help install demo serve test test-fast check format bench bench-gpu miniature clean

help:            ## What can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

install: $(READY)   ## A virtual environment in .venv with everything in it

# torch first and by itself: a plain "torch" on another day would bring gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "Tiller needs $(PYTHON); set PYTHON=python3 if that is 3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)   ## Serve the miniature, change a president, look at the pictures
	$(BIN)/tiller demo

serve: $(READY)  ## Serve on http://127.0.0.1:8311 (Ray Serve)
	$(BIN)/tiller serve

test: $(READY) postgres   ## All tests: plain ones first, two files at a time, then the few that start Ray
	$(BIN)/pytest -n 2 --dist loadfile
	$(BIN)/pytest -m cluster

test-fast: $(READY)
	$(BIN)/pytest -x -q

.PHONY: postgres
postgres:        ## The registry's tests start a real PostgreSQL
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 || \
	  { command -v apt-get >/dev/null && (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null) || \
	    echo "PostgreSQL could not be installed: its tests will say that they were skipped"; }

check: $(READY)  ## Format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Ratios, each measured in one run; writes docs/benchmarks.md
	$(BIN)/python -m benches

bench-gpu: $(READY)  ## The same on a GPU, for a model of Stable Diffusion 1.5's shape
	$(BIN)/python -m benches gpu --device cuda

miniature: $(READY)  ## Draw the world and train its models again (hours; a day without a GPU)
	$(BIN)/python -m miniature.training
	for kind in jumprelu topk; do \
	  $(BIN)/tiller sae train --model miniature/weights/language --name miniature-lm --texts build/miniature/texts.jsonl \
	    --site lm.block.1 --site lm.block.3 --site lm.block.4 --kind $$kind --features 1536 --l0 24 --tokens 1000000 \
	    --bfloat16 --store float16 --output miniature/weights/saes; \
	done

clean:
	rm -rf $(VENV) .demo demo build dist *.egg-info
