# Everyday commands; they use the Python of the active environment. "make PYTHON=... test" takes another one.
PYTHON ?= python

.PHONY: install test test-all lint format bench

install:
	$(PYTHON) -m pip install -e ".[dev]"

test:
	$(PYTHON) -m pytest

# The slow tests too: builds the wheel and installs it.
test-all:
	$(PYTHON) -m pytest -m ""

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# Ratios against RecBole, about 15 minutes; writes results/benchmarks.md.
bench:
	$(PYTHON) benchmarks/run_all.py
