# `make train` and `make test` need nothing but Python 3.11 and make: the environment in .venv is made on the first
# call and made again when pyproject.toml or constraints.txt changes.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := dev,docs,lightning,transformers,tables,onnx,bench,compare
INSTALLED := $(VENV)/.installed
# Tests run in two processes of one thread each: on small tensors faster than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow lint format docs clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## Set up .venv with everything that is pinned in constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; takes a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch hatchling editables
	$(PIP_INSTALL) --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

train: $(INSTALLED)  ## Train Tamiyo with the defaults and compare it with the other controllers
	$(BIN)/esper train

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

clean:  ## Remove the environment, caches and build products (runs/ stays)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
