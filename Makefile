# make setup | run | test | slow | machines | nightly | clean        PYTHON=python3.12 chooses the interpreter of a new .venv
# TORCH=... chooses another build of torch:     make setup TORCH='torch --index-url https://download.pytorch.org/whl/cu130'
PYTHON ?= python3.11
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: setup run test slow machines nightly clean

setup: $(VENV)/.installed

# Stamps: what is installed once is not looked at again, until the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo 'installing into $(VENV): once, a few minutes'
	$(PYTHON) -m venv $(VENV)
	cp constraints.txt $(VENV)/constraints.txt
	if [ -n "$(TORCH)" ]; then $(PIP) install $(TORCH); sed -i.bak '/^torch==/d' $(VENV)/constraints.txt; fi
	$(PIP) install -c $(VENV)/constraints.txt -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install -c $(VENV)/constraints.txt -e '.[test]'
	touch $@

run: setup
	$(BIN)/fedcl run split-digits

# Processes that share the tests out: conftest.py says which tests stay together. By hand, `pytest FILE` runs in one.
WORKERS ?= 2
SHARED := -n $(WORKERS) --dist loadgroup

# One thread: two processes with several each would fight for the cores.
test slow machines nightly: export OMP_NUM_THREADS = 1

test: $(VENV)/.tested
	@echo 'ten to fifteen minutes on two cores; a file by hand: $(BIN)/python -m pytest tests/test_cli.py'
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict fedcl clients server
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(SHARED) -m "not slow and not machines and not nightly"

slow: $(VENV)/.tested
	$(BIN)/python -m pytest $(SHARED) -m "slow and not nightly"

# A federation of real processes (SuperLink, SuperNodes): TLS, faults, a cut network.
machines: $(VENV)/.tested
	$(BIN)/python -m pytest $(SHARED) -m "machines and not nightly"

# What takes too long for every change. `.ci/run` leaves it out.
nightly: $(VENV)/.tested
	$(BIN)/python -m pytest $(SHARED) -m nightly

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
