# Every target sets up what it needs in .venv; the first one takes a few minutes for that.
#
# Settings: PYTHON (interpreter of .venv), TORCH_INDEX (package index to take torch from), EXTRAS; .ci/install
# explains them. DEMO is the folder that the demo fills, TESTS what `make test` runs.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO ?= runs/demo
TESTS ?= tests

export PYTHON TORCH_INDEX EXTRAS

.PHONY: help install demo test check format clean

help:
	@echo "make demo     archive, pretraining, fine-tuning and report on synthetic alloys, into $(DEMO)"
	@echo "make test     run the tests"
	@echo "make check    lint, format check and types"
	@echo "make format   format the code"
	@echo "make install  only set up $(VENV)"
	@echo "make clean    remove $(VENV) and caches; runs stay"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	@.ci/install $(VENV)
	@touch $@

demo: $(STAMP)
	@$(BIN)/pscl-hpc demo --out $(DEMO)

test: $(STAMP)
	@$(BIN)/python -m pytest -q $(TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
