# Two commands: `make demo` runs the main job on embedded data, `make test` passes the tests.
# Each creates what it needs in .venv, from Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO ?= demo

.PHONY: demo test test-long kernels check docs format benchmark faults clean

demo: .venv/installed
	test -e $(DEMO)/cfg.yaml || $(BIN)/hookloop init downscaling $(DEMO)
	$(BIN)/hookloop run $(DEMO)/cfg.yaml
	$(BIN)/hookloop compare $(DEMO)/run --exact $(DEMO)/exact.json

# A thread for each process: they share the cores.
test: .venv/developing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

# The kernels for GPUs, interpreted where there is none.
kernels: .venv/developing
	$(PIP) -e '.[dev,kernels]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/diffusion/test_fused.py

# Whole jobs of several processes, disturbed in more ways than `make test` has time for.
test-long: .venv/developing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

check: .venv/developing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/write.py --check

docs: .venv/developing
	$(BIN)/python docs/write.py

format: .venv/developing
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What the loop costs, beside other training loops, which need an environment of their own.
benchmark: .venv-peers/installed
	OMP_NUM_THREADS=1 .venv-peers/bin/python benchmarks/overhead.py

.venv-peers/installed: benchmarks/requirements-peers.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/requirements-peers.txt -e .
	touch $@

faults: .venv/developing
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m faults $(FAULTS)

.venv/created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hookloop needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

.venv/developing: .venv/installed
	$(PIP) -e '.[dev]' -e examples/hookloop-ceiling
	touch $@

clean:
	rm -rf .venv .venv-peers
