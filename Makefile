# `make` lists the targets. PYTHON=... chooses the interpreter of a new .venv; ARGS=... is passed on to pytest;
# WORKERS=1 tests one file at a time; by default two, where there are two cores and 12 GB of memory, and three with 20 GB:
# files wait for programs that they start.

SHELL := /bin/sh
BIN := .venv/bin
STAMP := .venv/.installed
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)
RUNS := runs/demo
WORKERS := $(shell awk '/^MemTotal/ { kb = $$2 } END { print 1 + (kb >= 12e6) + (kb >= 20e6) }' /proc/meminfo 2>/dev/null || echo 1)
ifeq ($(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1),1)
WORKERS := 1
endif
# glibc gives memory back to the system and asks for it again while XLA compiles: a twelfth of the time.
MALLOC := MALLOC_TRIM_THRESHOLD_=536870912 MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TOP_PAD_=16777216

.PHONY: help venv demo test test-all fuzz soak lint format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP)  ## create .venv and install the project with its test tools into it

# Redone when setup.py changes. An interpreter is tried by running it: a name on the PATH may be a shim of nothing.
$(STAMP): setup.py
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
	  found=; \
	  for python in $(PYTHONS); do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'No Python from 3.11 to 3.13 runs here (tried: $(PYTHONS)).' \
	      'Install one, or name it: make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3.12' >&2; \
	    exit 1; \
	  fi; \
	  echo "creating .venv with $$($$found --version)"; \
	  $$found -m venv --clear .venv || { rm -rf .venv; exit 1; }; \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@echo 'installing into .venv (a few minutes the first time)'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[test]'
	@touch $@

demo: venv  ## synthesise sounds, prepare, pre-train, export, evaluate, draw: everything once, in minutes on a CPU
	@test -f $(RUNS)/sounds/sounds.csv || { rm -rf $(RUNS)/sounds $(RUNS)/sounds.part; \
	  $(BIN)/python -m data_pipeline.synth --output=$(RUNS)/sounds.part && mv $(RUNS)/sounds.part $(RUNS)/sounds; }
	$(BIN)/python -m data_pipeline.prepare --input=$(RUNS)/sounds/sounds.csv --output=$(RUNS)/data --frontend=atst
	$(BIN)/python -m atst_jax.main --config=configs/demo.py --workdir=$(RUNS)/pretrain
	@rm -rf $(RUNS)/encoder
	$(BIN)/python -m atst_jax.export --workdir=$(RUNS)/pretrain --output=$(RUNS)/encoder
	$(BIN)/python -m atst_jax.main --config=configs/demo_linear.py --workdir=$(RUNS)/linear
	$(BIN)/python -m atst_jax.report --workdir=$(RUNS)/pretrain --encoder=$(RUNS)/encoder --data=$(RUNS)/data \
	  --audio=$(RUNS)/sounds --results=$(RUNS)/linear
	@echo; cat $(RUNS)/linear/results.md; echo
	@echo 'pictures: $(RUNS)/pretrain/*.png; all on one page: $(RUNS)/pretrain/report.html'

test: venv  ## the test suite without the tests marked slow
	@$(MALLOC) $(BIN)/python -m pytest -m 'not slow' $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS) --dist loadfile) $(ARGS)

test-all: venv  ## the whole test suite
	@$(BIN)/python -m pytest $(ARGS)

# What decoders print of damaged files goes; a crash shows in the exit code.
fuzz: venv  ## hostile input of every kind, thousands of cases drawn anew; CASES=2000 of each target
	@FUZZ_EXAMPLES=$(or $(CASES),2000) $(BIN)/python -m pytest -s tests/test_fuzz*.py $(ARGS) 2>/dev/null

soak: venv  ## kill a training run at random instants for ten minutes (ARGS=--hours=8), and compare with an undisturbed one
	@$(BIN)/python -m tests.soak $(ARGS)

lint: venv  ## check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: venv  ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove caches, builds and the demo's runs; .venv stays
	rm -rf $(RUNS) build dist ./*.egg-info .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
