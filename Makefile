# Everything a fresh machine needs: `make train` and `make test` set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests that share what takes long to make stay on one core together.
ON_ALL_CORES = -n $(shell $(PYTHON) -c "import os; print(os.cpu_count())") --dist loadgroup

.PHONY: architecture help train test test-quick test-oldest test-newest lint types package docs docs-check format bench bench-quick bench-compare clean

help:
	@echo "make train        train a Spectral-RNN and an LSTM on the adding problem, about 3 minutes"
	@echo "make test         run the tests on all cores, 5 to 7 minutes on two"
	@echo "make test-quick   a case or two of each test, without what takes long, about 1 minute"
	@echo "make test-oldest  run them with the oldest PyTorch and Triton that are supported (a download of gigabytes)"
	@echo "make test-newest  run them with the newest PyTorch that pip finds, and its Triton (gigabytes too)"
	@echo "make test-compiled  run the kernels' tests on their compiled form, without a GPU (gigabytes; Python 3.12 or 3.13)"
	@echo "make test-mutations  put faults into library and kernels, one at a time, and see which tests notice"
	@echo "make lint         check style"
	@echo "make types        check the types of the installed package"
	@echo "make package      build wheel and sdist in dist"
	@echo "make docs         build the documentation in build/docs"
	@echo "make architecture  draw its picture of the package"
	@echo "make docs-check   look at it in Chromium: formulas, links, public names, pictures of each page"
	@echo "make bench        benchmarks against the peers that are installed, about 10 minutes"
	@echo "make bench-quick  a small selection of them, about 1 minute"
	@echo "make bench-compare  the same, failing where it is slower than this machine's committed report"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,clients,experiments,lint]'
	@touch $(STAMP)

train: $(STAMP)
	$(BIN)/spectral-triton train adding --model spectral,lstm --threads 1 --output runs/adding

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet $(ON_ALL_CORES)

test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet $(ON_ALL_CORES) --quick

# The interpreter of Triton 3.6 fails with NumPy 2.4.
test-oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet --editable '.[test,experiments]' 'torch==2.11.*' 'triton==3.6.*' 'numpy<2.4'
	OMP_NUM_THREADS=1 build/oldest/bin/pytest --quiet $(ON_ALL_CORES)

# Another one by NEWEST='torch==2.14.*'. Its own Triton comes with it.
NEWEST ?= torch
test-newest:
	$(PYTHON) -m venv build/newest
	build/newest/bin/pip install --quiet --upgrade --editable '.[test,clients,experiments]' '$(NEWEST)'
	OMP_NUM_THREADS=1 build/newest/bin/pytest --quiet $(ON_ALL_CORES)

# ttsem reads the compiled form of exactly these versions.
PYTHON_COMPILED ?= $(firstword $(shell for python in python3.12 python3.13 "$$HOME"/.pyenv/versions/3.1[23]*/bin/python; do \
	"$$python" -c 'import sys, venv; print(sys.executable)' 2>/dev/null; done))
COMPILED := build/compiled

$(COMPILED)/.installed: constraints.txt pyproject.toml
	@test -n "$(PYTHON_COMPILED)" || { echo "make test-compiled needs Python 3.12 or 3.13: neither python3.12 nor python3.13 runs; name one with PYTHON_COMPILED=/path/to/python3.12"; exit 1; }
	$(PYTHON_COMPILED) -m venv $(COMPILED)
	grep -vE '^(torch|triton)==' constraints.txt > $(COMPILED)/constraints.txt
	$(COMPILED)/bin/pip install --quiet --constraint $(COMPILED)/constraints.txt --editable '.[test]' 'torch==2.14.0' 'triton==3.8.0' 'ttsem==0.1.0'
	@touch $@

test-compiled: $(COMPILED)/.installed
	OMP_NUM_THREADS=1 $(COMPILED)/bin/python tests/compiled_form.py --quiet --report perf/reports/compiled_form.md

# An hour on two cores; faults that the interpreter cannot see go to the compiled form.
test-mutations: $(STAMP) $(COMPILED)/.installed
	$(BIN)/python tests/mutations --jobs 2 --compiled $(COMPILED)/bin/python --report perf/reports/mutations.md

bench: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	OMP_NUM_THREADS=2 $(BIN)/pytest perf --label full

bench-quick: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	OMP_NUM_THREADS=2 $(BIN)/pytest perf --quick --label quick

bench-compare: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	OMP_NUM_THREADS=2 $(BIN)/pytest perf --quick --label new
	$(BIN)/python perf/report.py compare

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

# As users have it: only a plain install is followed by type checkers.
types: $(STAMP)
	rm -rf build/types
	$(BIN)/pip install --quiet --no-deps --target build/types .
	cp tests/typed_program.py build/types
	cd build/types && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p spectral_triton
	cd build/types && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml typed_program.py

package: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt build
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

docs: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

# The picture of docs/architecture.md, from the imports.
architecture: $(STAMP)
	$(BIN)/python docs/draw_architecture.py
docs-check: docs
	$(BIN)/python docs/check.py build/docs

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
