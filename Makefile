# Shortcuts for working in a checkout; needs the packages of pip install -e ".[test]".
PYTHON ?= python
BUILD = $(PYTHON) setup.py -q build_ext --inplace
TEST = $(PYTHON) -m pytest -q

.PHONY: build test asan cov lint bench

build: ; $(BUILD)
test: build ; $(TEST)
asan: ; $(PYTHON) .ci/sanitize
cov: ; $(PYTHON) .ci/coverage --lines
lint: ; .ci/lint
bench: build ; for script in benchmarks/bench_*.py; do $(PYTHON) $$script; done
