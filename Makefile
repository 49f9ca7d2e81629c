PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick check format bench docs lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: $(VENV)/.installed  ## virtual environment from the lock file

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Headrace needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## the whole loop on this machine, three minutes
	$(BIN)/headrace demo

test: check  ## environment, linters and the whole test suite
	$(BIN)/python -m pytest

quick: setup  ## the tests that need no more than this machine and a few seconds each
	$(BIN)/python -m pytest -m "not slow and not kafka and not hdfs and not logs"

check: setup  ## linters, types, import contracts, compose.yaml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/docker-compose --file compose.yaml config --quiet

format: setup  ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## every benchmark, each beside its peer
	$(BIN)/headrace bench joiner
	$(BIN)/headrace bench formats
	$(BIN)/headrace bench sink

docs: setup  ## the generated reference: schemas, settings
	$(BIN)/headrace schemas docs/schemas
	$(BIN)/headrace config --reference > docs/settings.md

lock:  ## resolve the dependencies anew into requirements.lock
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet "$$(grep -o 'torch==[0-9.]*' pyproject.toml)"
	.lock-venv/bin/python -m pip install --quiet setuptools --editable '.[dev]'
	.lock-venv/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' | grep -vE '^(nvidia-|triton|cuda-)' > requirements.lock
	rm -rf .lock-venv

clean:  ## what the commands above left behind
	rm -rf $(VENV) .lock-venv var build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
