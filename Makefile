# Two commands do everything: `make demo` runs the main job, `make test` passes the tests. Both make what they need.
.DELETE_ON_ERROR:
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo setup test check format figures bench-distill sanitize simulate loadtest-smoke lock clean

help:
	@echo "make demo   start four nodes, make quantum keys, deliver them, attack a link (leaves demo-report.json)"
	@echo "make test   pass all tests"
	@echo "make check  format, lint, strict types, import contracts, fast tests"
	@echo "make setup  only create $(VENV) with everything"
	@echo "make simulate SEED=7  one network with faults in virtual time, step by step"
	@echo "make lock   pin the newest compatible versions in the lock files (needs uv)"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qnode needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What the daemon needs, and the package itself (its C kernels where there is a compiler, their twins elsewhere).
$(VENV)/.runtime: requirements.lock pyproject.toml setup.py protocol/kernels/sources.py $(wildcard protocol/kernels/*.c protocol/kernels/*.h) loadtest/fleet/_pages.c | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

# The demo of devices needs a broker: Mosquitto if the machine has it, the embedded one otherwise.
$(VENV)/.broker: requirements-broker.lock $(VENV)/.runtime
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null || { $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-broker.lock && touch $@; }

demo: $(VENV)/.broker
	@$(BIN)/python -m qnode.demo

setup: $(VENV)/.dev

# Pure tests share the cores; those that start daemons have the machine for themselves.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not integration"
	$(BIN)/python -m pytest -q -m integration

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow and not integration"

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Draw every figure of docs/ again: the architecture, and the physics with its emulated points (half a minute).
figures: $(VENV)/.dev
	$(BIN)/python docs/draw_architecture.py
	$(BIN)/python -m loadtest.figures

# Measure every reconciliation method over QBER and block size, and write the table into docs/performance.md.
bench-distill: $(VENV)/.dev
	$(BIN)/python -m loadtest.bench_distill --into docs/performance.md

# A load test of everything once, on four real nodes, under a minute; the result and its report go to results/.
loadtest-smoke: $(VENV)/.dev
	$(BIN)/python -m loadtest run smoke

# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer (a minute; needs gcc).
sanitize: $(VENV)/.dev
	sh tests/protocol/kernels/sanitize.sh $(BIN)/python

# One run of the simulated network in virtual time, with its readable trace: make simulate SEED=7
SEED ?= 7
simulate: $(VENV)/.dev
	$(BIN)/python -m loadtest simulate --seeds 1 --first-seed $(SEED) --trace

lock:
	uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header requirements.in -o requirements.lock
	uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock requirements-broker.in -o requirements-broker.lock
	uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --no-header -c requirements.lock -c requirements-broker.lock requirements-dev.in -o requirements-dev.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .demo demo-report.json
