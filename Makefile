# All set-up happens here: `make demo` and `make test` work on a fresh clone.
# Everything goes into the private environment .venv; nothing is installed globally.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_ARGS ?=
PYTEST_ARGS ?=

.PHONY: demo test check bench controlplane lock clean
.DEFAULT_GOAL := demo

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'import lightgbm' || \
	  { echo "LightGBM needs the OpenMP runtime: apt-get install libgomp1 (or your system's equivalent)"; exit 2; }
	@touch $@

## demo: train, serve, decide, compare, promote on a generated cluster; DEMO_ARGS="--trace DIR" for a real one
demo: $(READY)
	$(BIN)/archimedes demo $(DEMO_ARGS)

## test: unit tests, and meanwhile (the first time: about ten minutes) the build of the real control plane
test: $(READY)
	@mkdir -p $(VENV)/log
	@echo "The real control plane is built once (about ten minutes); the unit tests run meanwhile."
	@set -e; \
	$(BIN)/python -m tests.controlplane.build > $(VENV)/log/controlplane.log 2>&1 & build=$$!; \
	unit=0; $(BIN)/python -m pytest -n 2 --dist loadfile -m "not controlplane" $(PYTEST_ARGS) || unit=$$?; \
	wait $$build || { echo "The control plane was not built:"; tail -n 5 $(VENV)/log/controlplane.log; }; \
	real=0; $(BIN)/python -m pytest -m controlplane $(PYTEST_ARGS) || real=$$?; \
	exit $$((unit + real))

## check: style, types, import contracts, documentation
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_docs.py

## bench: every benchmark's table
bench: $(READY)
	@set -e; for module in $$(ls bench/*.py | grep -v __init__); do \
	  echo "== $$module"; $(BIN)/python -m bench.$$(basename $$module .py); done

## controlplane: build etcd, the Kubernetes servers and kwok for the tests, once, outside the tree
controlplane: $(READY)
	$(BIN)/python -m tests.controlplane.build

## lock: resolve the dependencies anew (needs uv)
lock:
	uv pip compile --quiet --universal --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --upgrade pyproject.toml --group dev -o requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
