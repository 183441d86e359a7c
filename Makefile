# `make train` and `make test` need only Python >= 3.10 and make: the rest is installed into .venv.
# PYTHON chooses the interpreter, ARGS are passed on: make train ARGS="--steps 100000 --seed 1".

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup-finished
UNFINISHED := .venv-unfinished

.DEFAULT_GOAL := help
.PHONY: help setup train test check clean

help: ## print the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

setup: $(STAMP) ## create .venv with the pinned dependencies (fast when up to date)

# pip may take a package that it was killed while installing for complete: an interrupted setup
# starts again from an empty environment. One that pip itself ends (status 1: no network) does not.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "acktr needs Python 3.10 or newer: choose one with make PYTHON=python3.11" >&2; exit 2; }
	@if [ -e $(UNFINISHED) ]; then $(PYTHON) -m venv --clear $(VENV); fi
	@touch $(UNFINISHED)
	$(PYTHON) -m venv $(VENV)
	@trap 'exit 130' INT TERM; \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		|| { [ $$? -ne 1 ] || rm $(UNFINISHED); exit 1; }
	@rm $(UNFINISHED)
	@touch $@

train: setup ## train ACKTR on HalfCheetah-v5; ARGS="--steps N --seed S ..."
	$(BIN)/acktr train HalfCheetah-v5 $(ARGS)

# Four processes at most: each of them comes to a gigabyte.
test: setup ## run the fast tests, one process a core; ARGS="-m slow" for the slow ones
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal $(ARGS)

check: setup ## lint, spelling, formatting, types, and the documentation without a warning
	$(BIN)/codespell
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

clean: ## remove .venv, caches and built documentation; runs are kept
	rm -rf $(VENV) $(UNFINISHED) .mypy_cache .pytest_cache .ruff_cache .hypothesis docs/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
