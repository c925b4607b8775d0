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

# Timings against RecBole; each script prints ratios.
bench:
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(PYTHON) "$$script" || exit 1; done
