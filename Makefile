# Shortcuts for working in a checkout; needs the packages of pip install -e ".[test]".
PYTHON ?= python
BUILD = $(PYTHON) setup.py -q build_ext --inplace
TEST = $(PYTHON) -m pytest -q
# ASan wants to be first; libstdc++ beside it, because oneDNN throws C++ exceptions.
PRELOAD = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so)

.PHONY: build test asan cov lint bench

build: ; $(BUILD)
test: build ; $(TEST)
asan: ; BOOT_SANITIZE=1 $(BUILD) && LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 $(TEST)
cov: ; $(PYTHON) .ci/coverage --lines
lint: ; .ci/lint
bench: build ; for script in benchmarks/bench_*.py; do $(PYTHON) $$script; done
