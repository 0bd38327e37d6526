# The commands of CONTRIBUTING.md. In another environment than .venv: make test BIN=path/to/its/bin

BIN ?= .venv/bin
WORKERS ?= 2

.PHONY: install check quick test bench

install:
	test -x $(BIN)/python || python3 -m venv $(BIN:/bin=)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without the statistical tests and the slow ones.
quick:
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not statistical and not slow"

test:
	$(BIN)/python -m pytest -q -n $(WORKERS)

# A training step and an evaluation against their peers; benchmarks/README.md lists the rest.
bench:
	$(BIN)/python benchmarks/speed.py step evaluate --rounds 5
