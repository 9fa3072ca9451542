# `make train` and `make test` need nothing but Python 3.11 and make: the environment in .venv is made on the first
# call and made again when pyproject.toml or constraints.txt changes.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# `make test PYTHON=python3.13` has an environment of its own, .venv-3.13.
VENV := .venv$(if $(filter command,$(firstword $(origin PYTHON))),-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'))
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
COMMA := ,
EXTRAS := dev,docs,lightning,transformers,tables,onnx,bench,compare,ray
INSTALLED := $(VENV)/.installed
TOOLS := build/tools
LOCKED := $(foreach extra,$(subst $(COMMA), ,$(EXTRAS)),--extra $(extra))
# Tests run in two processes of one thread each: on small tensors faster than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow lint format docs lock audit clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Set up .venv with everything that is pinned in constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; takes a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch hatchling editables
	$(PIP_INSTALL) --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

train: $(INSTALLED)  ## Train the Tamiyo that comes with Esper further, and compare it with the other controllers
	$(BIN)/esper train --policy tamiyo --paired --updates 5 --eval-episodes 10 \
	  --ppo.learning-rate linear:3e-4 --ppo.entropy-coefficient 0.004

test: $(INSTALLED)  ## Run the default tests, doctests included
	$(PYTEST)

test-slow: $(INSTALLED)  ## Run the slow tests
	$(PYTEST) -m slow

lint: $(INSTALLED)  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(INSTALLED)  ## Build the site into build/docs and run its tutorials; a warning is an error
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q --fresh-env --nitpicky --fail-on-warning --keep-going docs build/docs

lock: $(TOOLS)/.uv  ## Write requirements.lock: the versions of constraints.txt and their hashes (needs a network)
	$(TOOLS)/bin/uv pip compile pyproject.toml $(LOCKED) --quiet --universal --python-version 3.11.7 --generate-hashes \
	  --no-annotate --no-header --constraint constraints.txt --output-file requirements.lock

audit: $(TOOLS)/.pip-audit  ## Look up known vulnerabilities of what requirements.lock names (needs a network)
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

$(TOOLS)/.%:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check $*
	@touch $@

clean:  ## Remove the environment, caches and build products (runs/ stays)
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
