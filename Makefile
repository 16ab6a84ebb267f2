# Two commands need nothing but Python 3.10-3.13, pip and make: `make demo` and `make test`.
SHELL := /bin/sh
VENV ?= .venv
RUN := $(VENV)/bin/python
ARGS ?=
# Processes that the tests are spread over, one thread each; JOBS=0 runs them in one, as a debugger wants.
JOBS ?= 2
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} "$(RUN)" -m pytest -n $(JOBS) --dist loadfile

# Waiting OpenMP threads must sleep: torch, faiss and numba bring a runtime each and would spin on the same cores.
export OMP_WAIT_POLICY ?= PASSIVE

# The first Python that runs, is supported and can make an environment. An environment that is there already keeps its
# Python; a pyenv shim exists without running, hence the trial.
USABLE := import sys, venv, importlib.util as u; \
  sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 13) and (u.find_spec('ensurepip') or u.find_spec('pip'))))
PYTHONS := $(RUN) python3.13 python3.12 python3.11 python3.10 python3 python
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in $(PYTHONS); do if "$$p" -c "$(USABLE)" >/dev/null 2>&1; then echo "$$p"; break; fi; done)
endif

.DEFAULT_GOAL := help
.PHONY: help python setup demo test test-quick lint matrix clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  PYTHON=python3.12 chooses the Python; EXTRAS=gpu,test and TORCH="torch==2.4.1 torchvision==0.19.1" choose'
	@echo '  what is installed (remembered in $(VENV)); ARGS="-k losses" goes to pytest or to the tool that runs.'

python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "no Python 3.10-3.13 with venv and pip on PATH: install one or name it, make PYTHON=/path/to/python" >&2; \
	  exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "PYTHON=$(PYTHON) does not run or is not Python 3.10-3.13: name another one" >&2; exit 1; }

setup: python  ## create .venv and install everything; quick when nothing changed
	@"$(PYTHON)" tools/environment.py "$(VENV)" \
	  $(if $(EXTRAS),--extras "$(EXTRAS)") $(if $(TORCH),--torch "$(TORCH)")

demo: setup  ## adapt a model to the synthetic target and print the table of results
	"$(RUN)" tools/compare.py --config-file configs/demo.yml --output runs/demo $(ARGS)

test: setup  ## the whole test-suite
	$(PYTEST) $(ARGS)

test-quick: setup  ## the tests that take less than about ten seconds each
	$(PYTEST) -m "not slow" $(ARGS)

lint: setup  ## ruff
	"$(RUN)" -m ruff check .

matrix: python  ## the quick tests on every Python found; record in benchmarks/matrix.json
	"$(PYTHON)" tools/matrix.py $(ARGS)

clean:  ## remove caches and build products; runs/ stays
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . \( -path './.venv*' -o -path ./.git -o -path ./runs \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean  ## remove the environments as well
	rm -rf "$(VENV)" .venv-3.*
