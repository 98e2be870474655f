# Every target sets up what it needs in .venv; the first one takes a few minutes for that.
#
# Settings: PYTHON (interpreter of .venv), TORCH_INDEX (package index to take torch from), EXTRAS; .ci/install
# explains them. TESTS is what `make test` runs, in WORKERS processes.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTS ?= tests
WORKERS ?= 2

export PYTHON TORCH_INDEX EXTRAS

.PHONY: help install demo test test-slurm check format clean

help:
	@echo "make demo        archive, fine-tuning, scores, pretraining and report on synthetic alloys, into runs/demo"
	@echo "make test        run the tests"
	@echo "make test-slurm  run the tests on a real Slurm (root, Debian packages: slurm/README.md)"
	@echo "make check       lint, format check and types"
	@echo "make format      format the code"
	@echo "make install     only set up $(VENV)"
	@echo "make clean       remove $(VENV) and caches; runs stay"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/install
	@.ci/install $(VENV)
	@touch $@

# Every line is an ordinary command that works on your images too. An interrupted demo resumes. The pretraining shows what PSCL
# samples; its 40 steps are too few to help, so the fine-tuning does not start from it.
demo: $(STAMP) runs/demo/alloys.h5
	$(BIN)/pscl-hpc finetune --config configs/demo/finetune.yaml
	$(BIN)/pscl-hpc finetune --config configs/demo/from-scratch.yaml
	$(BIN)/pscl-hpc evaluate runs/demo/finetune
	$(BIN)/pscl-hpc evaluate runs/demo/from-scratch
	$(BIN)/pscl-hpc pretrain --config configs/demo/pretrain.yaml
	$(BIN)/pscl-hpc report runs/demo

runs/demo/alloys.h5: | $(STAMP)
	$(BIN)/pscl-hpc archive synth --out $@ --images 48 --size 384,384 --seed 1 --family precipitates

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slurm" $(TESTS)

# A cluster for each file; the tests mostly wait.
test-slurm: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 4 --dist loadfile tests/slurm

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
